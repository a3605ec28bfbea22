//! Debian's package manager: what it has, what it could have, and how it is told to install.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::process;

/// Whether this is Debian or one of its kin.
pub fn is_there() -> bool {
    process::on_path("apt-get")
}

/// The versions of one package.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// The one that is installed.
    pub installed: Option<String>,
    /// The one that `apt-get install` would choose.
    pub candidate: Option<String>,
}

/// What apt knows of some packages. One that it has never heard of is not in it.
#[derive(Debug, Default)]
pub struct Policy {
    packages: BTreeMap<String, Package>,
    /// Apt has lists of packages; without them it has heard of the installed ones only.
    has_lists: bool,
}

impl Policy {
    /// Asks apt for `packages`.
    pub fn query(packages: &[String]) -> Result<Self> {
        let mut apt = Command::new("apt-cache");
        apt.env("LC_ALL", "C").arg("policy").args(packages);
        let lists = fs::read_dir("/var/lib/apt/lists");
        let has_lists = lists.is_ok_and(|mut lists| {
            lists.any(|list| {
                list.is_ok_and(|list| list.file_name().to_string_lossy().contains("_Packages"))
            })
        });
        Ok(Self::parse(&process::output(&mut apt)?, has_lists))
    }

    /// Reads what `apt-cache policy` prints: a package's name at the start of a line, its versions indented below.
    pub fn parse(said: &str, has_lists: bool) -> Self {
        let mut packages = BTreeMap::<_, Package>::new();
        let mut package = None;
        for line in said.lines() {
            let version =
                |text: &str| Some(text.trim().to_owned()).filter(|version| version != "(none)");
            if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
                package = Some(packages.entry(name.to_owned()).or_default());
            } else if let (Some(package), Some((key, value))) = (&mut package, line.split_once(':'))
            {
                match key.trim() {
                    "Installed" => package.installed = version(value),
                    "Candidate" => package.candidate = version(value),
                    _ => {}
                }
            }
        }
        Self { packages, has_lists }
    }

    /// The version of `package` that would be installed.
    pub fn candidate(&self, package: &str) -> Option<&str> {
        self.packages.get(package)?.candidate.as_deref()
    }

    /// The version of `package` that is installed.
    pub fn installed(&self, package: &str) -> Option<&str> {
        self.packages.get(package)?.installed.as_deref()
    }

    /// Whether `package` can be had, as far as is known; it may have a version behind `=`.
    pub fn offers(&self, package: &str) -> bool {
        let package = package.split('=').next().unwrap_or(package);
        !self.has_lists || self.candidate(package).is_some()
    }

    /// Whether installing `package` would change nothing.
    pub fn is_settled(&self, package: &str) -> bool {
        self.packages.get(package).is_some_and(|package| {
            package.installed.is_some() && package.installed == package.candidate
        })
    }
}

/// The command that fetches the lists of packages.
pub fn update() -> Result<Command> {
    apt_get(&["update"], &[])
}

/// The command that installs `packages` without a question, and without taking anything away. A version that one has
/// behind `=` may be older than what is installed.
pub fn install(packages: &[String]) -> Result<Command> {
    let mut action = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    if packages.iter().any(|package| package.contains('=')) {
        action.push("--allow-downgrades");
    }
    apt_get(&action, packages)
}

fn apt_get(action: &[&str], packages: &[String]) -> Result<Command> {
    // A machine that has just started is often busy with its own upgrades.
    let start =
        ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"];
    let packages = packages.iter().map(String::as_str);
    process::as_root(start.into_iter().chain(action.iter().copied()).chain(packages))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://mirror.invalid/debian bookworm-security/main amd64 Packages
llvm-22-dev:
  Installed: 1:22.1.7-1
  Candidate: 1:22.1.8-1
  Version table:
libzstd-dev:
  Installed: 1.5.4+dfsg2-5
  Candidate: 1.5.4+dfsg2-5
libold-dev:
  Installed: (none)
  Candidate: (none)
";

    #[test]
    fn versions_are_read_by_package() {
        let policy = Policy::parse(SAID, true);
        assert_eq!(policy.candidate("rustc-web"), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(policy.candidate("llvm-22-dev"), Some("1:22.1.8-1"));
        assert_eq!(policy.candidate("libold-dev"), None);
        assert_eq!(policy.candidate("never-heard-of"), None);
    }

    #[test]
    fn only_a_named_version_may_be_older() {
        let command = |packages: &[&str]| {
            let packages: Vec<_> = packages.iter().map(|package| (*package).to_owned()).collect();
            install(&packages).map(|command| process::shown(&command)).expect("a command")
        };
        assert!(!command(&["cpio"]).contains("downgrades"));
        assert!(
            command(&["cpio", "qemu-utils=1:7.2"])
                .ends_with(" --allow-downgrades cpio qemu-utils=1:7.2")
        );
    }

    #[test]
    fn without_lists_nothing_is_ruled_out() {
        assert!(!Policy::parse(SAID, true).offers("libold-dev"));
        assert!(Policy::parse(SAID, false).offers("libold-dev"));
    }

    #[test]
    fn only_the_newest_that_can_be_had_is_settled() {
        let policy = Policy::parse(SAID, true);
        let settled = ["rustc-web", "llvm-22-dev", "libzstd-dev", "libold-dev", "never-heard-of"]
            .map(|p| policy.is_settled(p));
        assert_eq!(settled, [false, false, true, false, false]);
    }
}
