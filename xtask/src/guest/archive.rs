//! Kernels from the Debian archive: which packages hold one, and their contents, checked and cached.
//!
//! Apt does the work, with lists and sources of its own, so that the machine's stay as they are. The mirror is the one
//! that the machine's apt is set up for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::process;

/// What Debian's own packages are signed with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long a list of packages is good for.
const LISTS_LAST: Duration = Duration::from_hours(24);

/// One suite of the archive.
pub struct Suite {
    name: &'static str,
    /// Apt's sources, lists and settings.
    dir: PathBuf,
}

/// A package file in the archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Name of the file.
    pub file: String,
    /// What the archive's signed index says of it, in hexadecimal digits.
    pub sha256: String,
}

/// A kernel in the archive.
#[derive(Debug)]
pub struct Kernel {
    /// What it is to be called: the file of its image package.
    pub name: String,
    /// The packages that hold it.
    pub packages: Vec<Package>,
}

impl Suite {
    /// Sets apt up for the suite `name` below `cache`, and fetches its list of packages if that is not recent.
    pub fn open(cache: &Path, name: &'static str) -> Result<Self> {
        let dir = cache.join("apt").join(name);
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create `{}`", part.display()))?;
        }
        let suite = Self { name, dir };
        suite.configure()?;
        let lists = suite.dir.join("updated");
        let age = lists
            .metadata()
            .and_then(|meta| meta.modified())
            .ok()
            .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if age.is_none_or(|age| age > LISTS_LAST) {
            match process::run(suite.apt("apt-get").args(["--quiet", "update"])) {
                Ok(()) => fs::write(&lists, "").context("cannot note the time of the update")?,
                // Without a network, kernels that were fetched before are as good as ever.
                Err(err) if age.is_some() => eprintln!("warning: {err:#}"),
                Err(err) => return Err(err),
            }
        }
        Ok(suite)
    }

    fn configure(&self) -> Result<()> {
        let mut apt = Command::new("apt-get");
        apt.args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]);
        let targets = process::output(&mut apt)?;
        let mirror =
            mirror(&targets).context("apt has no Debian mirror in its sources: add one")?;
        let sources = format!("deb [signed-by={KEYRING}] {mirror} {} main\n", self.name);
        fs::write(self.dir.join("sources.list"), sources).context("cannot write sources.list")?;
        let dir = self.dir.to_str().context("the cache's path is not UTF-8")?;
        // Hooks are for the machine's own lists. Apt as an ordinary user could not write to a home directory.
        let settings = format!(
            r#"#clear APT::Update;
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{dir}/lists";
Dir::Cache "{dir}/cache";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::PDiffs "false";
APT::Update::Error-Mode "any";
"#
        );
        fs::write(self.dir.join("apt.conf"), settings).context("cannot write apt.conf")
    }

    /// One of apt's programs at work on this suite.
    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.env("LC_ALL", "C").arg("--config-file").arg(self.dir.join("apt.conf"));
        apt
    }

    /// The newest cloud kernel of `series`, if the suite has one.
    pub fn kernel(&self, series: &str) -> Result<Option<Kernel>> {
        let names = process::output(self.apt("apt-cache").args(["pkgnames", "linux-image-"]))?;
        let Some(image) = newest(series, names.lines()) else { return Ok(None) };
        let about =
            process::output(self.apt("apt-cache").args(["show", "--no-all-versions"]).arg(image))?;
        let mut download = self.apt("apt-get");
        download.args(["download", "--print-uris", image]).args(parts(&about));
        let packages: Option<Vec<_>> =
            process::output(&mut download)?.lines().map(Package::parse).collect();
        let packages = packages.context("apt-get says where packages are in words of its own")?;
        let own = packages.iter().find(|package| package.name() == image);
        let name = own.context("a kernel without a package")?.file.clone();
        Ok(Some(Kernel { name, packages }))
    }

    /// Fetches `packages` into `dir`, and tells where they are.
    pub fn fetch(&self, packages: &[Package], dir: &Path) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for package in packages {
            eprintln!("fetching {}", package.file);
            let mut download = self.apt("apt-get");
            download.args(["--quiet", "download", package.name()]).current_dir(dir);
            process::run(&mut download)?;
            let path = dir.join(&package.file);
            if sha256(&path)? != package.sha256 {
                bail!("`{}` is not what the archive's index says: try again", package.file);
            }
            paths.push(path);
        }
        Ok(paths)
    }
}

impl Package {
    fn name(&self) -> &str {
        package_name(&self.file)
    }

    /// Reads a line of `apt-get download --print-uris`: address in quotes, file, size, checksum.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1);
        let file = words.next()?.to_owned();
        let sha256 = words.nth(1)?.strip_prefix("SHA256:")?.to_owned();
        Some(Self { file, sha256 })
    }
}

/// The package that a file holds: `NAME_VERSION_ARCHITECTURE.deb`.
fn package_name(file: &str) -> &str {
    file.split('_').next().unwrap_or_default()
}

/// Whether a kernel, as [`Kernel`] names it, is of `series`.
pub fn is_of(series: &str, kernel: &str) -> bool {
    newest(series, [package_name(kernel)].into_iter()).is_some()
}

/// The address of the archive in what apt says of its sources, the security updates left out: they lie elsewhere.
fn mirror(targets: &str) -> Option<&str> {
    let mut targets = targets.lines().filter_map(|line| line.split_once(' '));
    let (_, address) = targets.find(|(suite, _)| !suite.contains("security"))?;
    Some(address)
}

/// The highest version of a series among the names of kernel packages.
fn newest<'a>(series: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let of_series = |name: &&str| {
        let version =
            name.strip_prefix("linux-image-").and_then(|rest| rest.strip_suffix("-cloud-amd64"));
        let rest = version.and_then(|version| version.strip_prefix(series));
        rest.is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    };
    names.filter(of_series).max_by_key(|name| numbers(name))
}

/// The numbers in a version, which tell apart those of one series.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The packages with the contents of an image package that has none of its own, as since 7.x: `linux-binary-*` has the
/// kernel, `linux-modules-*` the modules.
fn parts(about: &str) -> impl Iterator<Item = &str> {
    let depends = about.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let names = depends.split(',').filter_map(|dependency| dependency.split_whitespace().next());
    names.filter(|name| {
        ["linux-binary-", "linux-modules-"].iter().any(|part| name.starts_with(part))
    })
}

fn sha256(path: &Path) -> Result<String> {
    let said = process::output(Command::new("sha256sum").arg(path))?;
    Ok(said.trim_start_matches('\\').split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_not_that_of_security_updates() {
        let targets = "\
bookworm-security http://security.invalid/debian-security/
bookworm http://mirror.invalid/debian/
bookworm-updates http://mirror.invalid/debian/
";
        assert_eq!(mirror(targets), Some("http://mirror.invalid/debian/"));
        assert_eq!(mirror(""), None);
    }

    #[test]
    fn the_newest_of_a_series_is_found_by_number() {
        let names = [
            "linux-image-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-51-cloud-amd64-unsigned",
            "linux-image-6.1.0-52-amd64",
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-7.0.14+deb14-cloud-amd64",
            "linux-image-7.2.3+deb14-cloud-amd64",
        ];
        let newest = |series| newest(series, names.into_iter());
        assert_eq!(newest("6.1"), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest("6.12"), Some("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest("7"), Some("linux-image-7.2.3+deb14-cloud-amd64"));
        assert_eq!(newest("5.10"), None);
    }

    #[test]
    fn a_kernel_in_several_packages_is_found_whole() {
        let about = "\
Package: linux-image-7.2.3+deb14-cloud-amd64
Depends: dracut | initramfs-tools (>= 0.120), linux-base-7.2.3+deb14-cloud-amd64 (= 7.2.3-1), \
linux-binary-7.2.3+deb14-cloud-amd64 (= 7.2.3-1), linux-modules-7.2.3+deb14-cloud-amd64 (= 7.2.3-1)
";
        let wanted =
            ["linux-binary-7.2.3+deb14-cloud-amd64", "linux-modules-7.2.3+deb14-cloud-amd64"];
        assert_eq!(parts(about).collect::<Vec<_>>(), wanted);
        assert_eq!(parts("Depends: kmod, linux-base (>= 4.3~)\n").count(), 0);
    }

    #[test]
    fn a_package_is_read_with_its_checksum() {
        let line = "'http://mirror.invalid/linux-image-x_6.1.176-1_amd64.deb' linux-image-x_6.1.176-1_amd64.deb 26489272 SHA256:00ff";
        let package =
            Package { file: "linux-image-x_6.1.176-1_amd64.deb".into(), sha256: "00ff".into() };
        assert_eq!(Package::parse(line), Some(package));
        assert_eq!(Package::parse("W: something else"), None);
    }
}
