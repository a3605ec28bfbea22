//! What KERNEL means, and the files of it that a guest needs: the kernel, and the modules that its disk needs.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::ALL;
use super::archive::{self, Suite};
use crate::process;

/// Names another directory for what is fetched.
const CACHE_VARIABLE: &str = "MEMTRACE_CACHE";

/// The driver of the guest's disk and what it stands on, in the order in which they are loaded. Which of them are
/// modules, and which are part of the kernel or not there at all, differs.
pub const MODULES: [&str; 6] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// The beginning of kernels that Debian has, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Series {
    name: &'static str,
    /// Searched in this order.
    suites: &'static [&'static str],
}

const SERIES: [Series; 4] = [
    Series { name: "5.10", suites: &["bullseye"] },
    Series { name: "6.1", suites: &["bookworm"] },
    Series { name: "6.12", suites: &["trixie"] },
    Series { name: "7", suites: &["sid", "trixie-backports"] },
];

/// A kernel as it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The newest of a series.
    Series(&'static Series),
    /// A file, with its modules where its version has them.
    File(PathBuf),
}

/// A kernel's files.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub vmlinuz: PathBuf,
    /// Holds those of [`MODULES`] that the kernel has as modules, as `NAME.ko`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Reads the names of kernels, `all` among them. Each is there once, in the order given.
    pub fn parse(names: &[String]) -> Result<Vec<Self>> {
        let mut kernels = Vec::new();
        for name in names {
            let meant = if name == ALL {
                SERIES.iter().map(Self::Series).collect()
            } else if let Some(series) = SERIES.iter().find(|series| series.name == name) {
                vec![Self::Series(series)]
            } else if name.contains('/') || Path::new(name).is_file() {
                vec![Self::File(name.into())]
            } else {
                let known = SERIES.map(|series| series.name).join(", ");
                bail!("no kernel `{name}`: name one of {known}, `all`, or the path of a vmlinuz");
            };
            for kernel in meant {
                if !kernels.contains(&kernel) {
                    kernels.push(kernel);
                }
            }
        }
        Ok(kernels)
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match self {
            Self::Series(series) => series.name.to_owned(),
            Self::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// Fetches and unpacks what is not in the cache yet. The modules of a file are put below `scratch`.
    pub fn files(&self, scratch: &Path) -> Result<Files> {
        match self {
            Self::Series(series) => {
                series.files().with_context(|| format!("no kernel {}", series.name))
            }
            Self::File(path) => {
                let path = fs::canonicalize(path)
                    .with_context(|| format!("no kernel `{}`", path.display()))?;
                let modules = scratch.join(format!("modules-{}", self.name()));
                fs::create_dir_all(&modules)
                    .with_context(|| format!("cannot create `{}`", modules.display()))?;
                if let Some(dir) = modules_of(&path)? {
                    collect_modules(&dir, &modules)?;
                }
                Ok(Files { vmlinuz: path, modules })
            }
        }
    }
}

impl Series {
    fn files(&self) -> Result<Files> {
        let cache = cache()?;
        fs::create_dir_all(&cache)
            .with_context(|| format!("cannot create `{}`", cache.display()))?;
        // Another one may be fetching the same.
        let lock = File::create(cache.join("lock")).context("cannot lock the cache")?;
        lock.lock().context("cannot lock the cache")?;
        let mut failure = None;
        for suite in self.suites {
            match self.files_of(&cache, suite) {
                Ok(Some(files)) => return Ok(files),
                Ok(None) => {}
                // Another one may be there: mirrors do not have all suites.
                Err(err) => failure = failure.or(Some(err)),
            }
        }
        let none = || anyhow!("the mirror has none in {}", self.suites.join(" or "));
        Err(failure.unwrap_or_else(none))
    }

    /// The newest kernel of a suite, fetched unless the cache has it.
    fn files_of(&self, cache: &Path, suite: &'static str) -> Result<Option<Files>> {
        let suite = Suite::open(cache, suite)?;
        let Some(kernel) = suite.kernel(self.name)? else { return Ok(None) };
        let kernels = cache.join("kernels");
        let dir = kernels.join(&kernel.name);
        if !dir.is_dir() {
            fs::create_dir_all(&kernels)
                .with_context(|| format!("cannot create `{}`", kernels.display()))?;
            let scratch = tempfile::tempdir_in(cache).context("cannot write to the cache")?;
            let packages = suite.fetch(&kernel.packages, scratch.path())?;
            unpack(&packages, scratch.path(), &dir)?;
            self.drop_others(&kernels, &kernel.name);
        }
        Ok(Some(Files { vmlinuz: dir.join("vmlinuz"), modules: dir }))
    }

    /// Removes what the cache has of older kernels of the series. One that stays is no failure.
    fn drop_others(&self, kernels: &Path, current: &str) {
        for entry in fs::read_dir(kernels).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != current
                && archive::is_of(self.name, &name)
                && let Err(err) = fs::remove_dir_all(entry.path())
            {
                eprintln!("warning: cannot remove `{}`: {err}", entry.path().display());
            }
        }
    }
}

/// Unpacks `packages` by way of `scratch`: what guests need of them becomes `dir`.
fn unpack(packages: &[PathBuf], scratch: &Path, dir: &Path) -> Result<()> {
    let (all, wanted) = (scratch.join("all"), scratch.join("wanted"));
    for package in packages {
        process::run(Command::new("dpkg-deb").arg("--extract").args([package, &all]))?;
    }
    fs::create_dir(&wanted).context("cannot unpack into the cache")?;
    let vmlinuz = find(&all, &|name| name == "vmlinuz" || name.starts_with("vmlinuz-"))?
        .context("the package has no vmlinuz: Debian puts it elsewhere now")?;
    fs::copy(&vmlinuz, wanted.join("vmlinuz")).context("cannot copy the kernel")?;
    collect_modules(&all, &wanted)?;
    fs::rename(&wanted, dir).context("cannot move the kernel into the cache")
}

/// Puts those of [`MODULES`] that are somewhere below `from` into `to`, uncompressed.
fn collect_modules(from: &Path, to: &Path) -> Result<()> {
    for module in MODULES {
        let plain = format!("{module}.ko");
        let is_module = |name: &str| {
            name.strip_prefix(&plain).is_some_and(|end| end.is_empty() || end.starts_with('.'))
        };
        let Some(found) = find(from, &is_module)? else { continue };
        let unpacker = match found.extension().and_then(|end| end.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => "cat",
        };
        let mut command = Command::new(unpacker);
        if unpacker != "cat" {
            command.args(["--decompress", "--stdout"]);
        }
        let to = File::create(to.join(plain)).context("cannot write a module")?;
        process::run(command.arg(&found).stdout(to))?;
    }
    Ok(())
}

/// The first file below `dir` whose name is right.
fn find(dir: &Path, is_right: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read `{}`", dir.display()))?;
        let path = entry.path();
        // Links lead to the kernel's sources, and round in circles.
        let kind = entry.file_type().with_context(|| format!("no `{}`", path.display()))?;
        if kind.is_dir() {
            if let Some(found) = find(&path, is_right)? {
                return Ok(Some(found));
            }
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_right) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The modules of a kernel: in the tree that it was unpacked in, or installed on this machine.
fn modules_of(vmlinuz: &Path) -> Result<Option<PathBuf>> {
    let image =
        fs::read(vmlinuz).with_context(|| format!("cannot read `{}`", vmlinuz.display()))?;
    let release = release(&image)
        .with_context(|| format!("`{}` is not a kernel for x86", vmlinuz.display()))?;
    let places = vmlinuz.ancestors().skip(1).flat_map(|dir| {
        ["lib/modules", "usr/lib/modules"].map(|modules| dir.join(modules).join(release))
    });
    Ok(places.into_iter().find(|dir| dir.is_dir()))
}

/// The version that a kernel's file says it is: where its header points to.
/// <https://www.kernel.org/doc/html/v6.12/arch/x86/boot.html>
fn release(image: &[u8]) -> Option<&str> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let pointer = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
    let text = image.get(usize::from(pointer) + 0x200..)?;
    let word = text.split(|byte| [0, b' '].contains(byte)).next()?;
    str::from_utf8(word).ok()
}

/// Where kernels are kept: they are large, do not change, and outlive the tree.
pub fn cache() -> Result<PathBuf> {
    let dir = env::var_os(CACHE_VARIABLE).map(PathBuf::from);
    let xdg = || Some(Path::new(&env::var_os("XDG_CACHE_HOME")?).join("memtrace"));
    let home = || Some(env::home_dir()?.join(".cache/memtrace"));
    let dir = dir.or_else(xdg).or_else(home);
    let dir = dir.filter(|dir| dir.is_absolute());
    dir.with_context(|| format!("no place for a cache: set {CACHE_VARIABLE} to an absolute path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(names: &[&str]) -> Result<Vec<Kernel>> {
        Kernel::parse(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn kernels_are_named_by_series_or_path() {
        let kernels = parse(&["6.12", "./vmlinuz-mine", "all"]).expect("all known");
        let names: Vec<_> = kernels.iter().map(Kernel::name).collect();
        assert_eq!(names, ["6.12", "vmlinuz-mine", "5.10", "6.1", "7"]);
        let err = parse(&["6.13"]).expect_err("unknown");
        assert_eq!(
            format!("{err:#}"),
            "no kernel `6.13`: name one of 5.10, 6.1, 6.12, 7, `all`, or the path of a vmlinuz"
        );
    }

    #[test]
    fn only_older_kernels_of_a_series_are_dropped() {
        let kernels = tempfile::tempdir().expect("a directory");
        let names = ["6.1.0-49", "6.1.0-50", "6.12.107+deb13"]
            .map(|version| format!("linux-image-{version}-cloud-amd64_1_amd64.deb"));
        for name in names.iter().map(String::as_str).chain(["mine"]) {
            fs::create_dir(kernels.path().join(name)).expect("a directory");
        }
        SERIES[1].drop_others(kernels.path(), &names[1]);
        let left = names.each_ref().map(|name| kernels.path().join(name).exists());
        assert_eq!((left, kernels.path().join("mine").exists()), ([false, true, true], true));
    }

    #[test]
    fn a_kernels_version_is_in_its_header() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"6.1.0-50 (x@y) #");
        assert_eq!(release(&image), Some("6.1.0-50"));
        assert_eq!(release(&image[..0x100]), None);
        assert_eq!(release(&[0; 0x400]), None);
    }

    #[test]
    fn modules_are_found_packed_or_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("kernel/drivers/block");
        fs::create_dir_all(&deep).expect("directories");
        fs::write(deep.join("virtio_blk.ko"), "block").expect("a module");
        fs::write(deep.join("virtio.ko.gz"), b"").expect("a module");
        let packed = Command::new("gzip").arg("-c").arg(deep.join("virtio_blk.ko")).output();
        fs::write(deep.join("virtio.ko.gz"), packed.expect("gzip").stdout).expect("a module");
        let to = tempfile::tempdir().expect("a directory");
        collect_modules(dir.path(), to.path()).expect("modules");
        for name in ["virtio.ko", "virtio_blk.ko"] {
            assert_eq!(fs::read(to.path().join(name)).expect(name), b"block");
        }
        assert_eq!(fs::read_dir(to.path()).expect("a directory").count(), 2);
    }
}
