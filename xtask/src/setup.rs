//! Makes sure of the tools that a command needs: decides what to install, and lists or installs it.
//!
//! Which tools can build the eBPF object is for `ebpf` to say.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Policy};
use crate::bench;
use crate::commands;
use crate::ebpf::search::{
    DEBIAN_LLVM, Found, LINKER_VERSION, Missing, Places, TOOLCHAIN_VARIABLE, Toolchain, number,
};
use crate::guest;
use crate::process;
use crate::readers::{self, Readers};

/// Debian's compiler with a `core` for BPF.
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// What guests are made with.
const GUEST: [&str; 8] = [
    "qemu-system-x86",
    "util-linux",
    "dpkg",
    "busybox-static",
    "cpio",
    "xz-utils",
    "e2fsprogs",
    "debian-archive-keyring",
];

/// What comes with the first of them.
const QEMU_TOOLS: &str = "qemu-utils";

/// What tests look at pages with, and a program or a file of each.
const BROWSER: [(&str, &str); 2] = [
    ("chromium", "/usr/bin/chromium"),
    ("fonts-dejavu-core", "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
];

/// Packages of other tracers, and a program of each.
const PEERS: [(&str, &str); 3] = [
    ("bpftrace", "/usr/bin/bpftrace"),
    ("bpfcc-tools", "/usr/sbin/drsnoop-bpfcc"),
    ("libbpf-tools", bench::DRSNOOP),
];

/// The newest LLVM that bpf-linker can be built with.
const NEWEST_LLVM: u32 = 23;

/// Tells where the LLVM lies that bpf-linker is built with. bpf-linker's own build reads it.
const LLVM_PREFIX: &str = "LLVM_PREFIX";

/// How missing tools are dealt with.
pub struct Setup {
    /// Install them, instead of listing them.
    pub install: bool,
}

impl Setup {
    /// Makes sure of a compiler and a linker for BPF.
    pub fn tools(&self) -> Result<Found> {
        let places = Places::new();
        let mut last = None;
        loop {
            let found = Found::search(&places)?;
            if found.tools().is_some() {
                return Ok(found);
            }
            eprintln!("missing: {}", found.explain());
            let missing = found.missing();
            let plan = self.plan(|policy| Plan::new(&missing, policy, places.named.is_none()))?;
            if plan.is_empty() || last.as_ref() == Some(&plan) {
                bail!("everything is installed, and yet this is missing");
            }
            self.carry_out(&plan)?;
            last = Some(plan);
        }
    }

    /// Makes sure that the toolchain of the workspace itself has `component`, rustfmt or clippy, which
    /// a minimal rustup leaves out.
    pub fn component(&self, component: &str) -> Result<()> {
        let subcommand = if component == "rustfmt" { "fmt" } else { component };
        let is_there = || process::cargo().args([subcommand, "--version"]).output();
        if is_there().is_ok_and(|output| output.status.success()) {
            return Ok(());
        }
        eprintln!("missing: {component}, a component of the Rust toolchain");
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", component]);
        let by_hand = process::shown(&rustup);
        if !self.install {
            bail!("`--no-install` was given: run `{by_hand}`");
        }
        process::run(&mut rustup).with_context(|| {
            format!("cannot install {component}: run `{by_hand}`, or install it by hand")
        })
    }

    /// Makes sure that `toolchain` has a clippy.
    pub fn clippy(&self, toolchain: &Toolchain) -> Result<()> {
        let dir = &toolchain.dir;
        if dir.join("bin/cargo-clippy").is_file() {
            return Ok(());
        }
        if *dir != Places::new().system {
            let name = dir.file_name().unwrap_or_default().display();
            bail!(
                "no clippy in {}: run `rustup component add clippy --toolchain {name}`",
                dir.display()
            );
        }
        eprintln!("missing: clippy for Debian's rustc-web");
        let plan =
            self.plan(|_| Plan { packages: vec!["rust-web-clippy".to_owned()], linker: None })?;
        self.carry_out(&plan)
    }

    /// Makes sure of what guests are made with.
    pub fn guest(&self) -> Result<()> {
        let missing = missing_for_guests();
        if missing.is_empty() {
            return Ok(());
        }
        eprintln!("missing: {}, for guests", missing.join(", "));
        let packages = |policy: &Policy| with_its_tools(missing.clone(), policy);
        let plan = self.plan(|policy| Plan { packages: packages(policy), linker: None })?;
        self.carry_out(&plan)?;
        let missing = missing_for_guests();
        if !missing.is_empty() {
            bail!("everything is installed, and yet this is missing: {}", missing.join(", "));
        }
        Ok(())
    }

    /// Makes sure of the browser that tests look at pages with.
    pub fn browser(&self) -> Result<()> {
        self.packages(&BROWSER, "to look at pages with")
    }

    /// Makes sure of the tracers that the bench compares memtrace with.
    pub fn peers(&self) -> Result<()> {
        self.packages(&PEERS, "to compare with")
    }

    /// Makes sure of packages, each of which has brought its file if it is there.
    fn packages(&self, packages: &[(&str, &str)], what_for: &str) -> Result<()> {
        let missing = packages.iter().filter(|(_, file)| !Path::new(file).is_file());
        let missing: Vec<_> = missing.map(|(package, _)| (*package).to_owned()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        eprintln!("missing: {}, {what_for}", missing.join(", "));
        let plan = self.plan(|_| Plan { packages: missing.clone(), linker: None })?;
        self.carry_out(&plan)
    }

    /// Makes sure of what reads memtrace's exports in the tests, and gives the Python that has it.
    pub fn readers(&self) -> Result<PathBuf> {
        let readers = Readers::new(commands::workspace()?)?;
        if readers.are_there()? {
            return Ok(readers.python());
        }
        eprintln!("missing: readers of memtrace's exports, packages of Python's");
        if !readers::can_be_installed() {
            let packages = vec![readers::PACKAGE.to_owned()];
            let plan = self.plan(|_| Plan { packages: packages.clone(), linker: None })?;
            self.carry_out(&plan)?;
        }
        let mut commands = readers.install();
        if !self.install {
            let commands: Vec<_> = commands.iter().map(process::shown).collect();
            bail!("not installed because of `--no-install`: run\n  {}", commands.join("\n  "));
        }
        commands.iter_mut().try_for_each(announce)?;
        if !readers.are_there()? {
            bail!("everything is installed, and yet readers of memtrace's exports are missing");
        }
        Ok(readers.python())
    }

    /// Makes the plan that fits what apt has to offer, and finds out whether it can be carried out.
    fn plan(&self, plan: impl Fn(&Policy) -> Plan) -> Result<Plan> {
        let wanted = plan(&Policy::default());
        if wanted.packages.is_empty() {
            return Ok(wanted);
        }
        if !apt::is_there() {
            bail!("{}", wanted.by_hand("there is no apt-get"));
        }
        let mut policy = Policy::query(&known_packages())?;
        if self.install && process::can_be_root()? && !plan(&policy).packages.is_empty() {
            // One of many sources may be out of reach while the others have what is wanted.
            if let Err(err) = announce(&mut apt::update()?) {
                eprintln!("warning: {err:#}");
            }
            policy = Policy::query(&known_packages())?;
        }
        let plan = plan(&policy);
        plan.check(&policy)?;
        Ok(plan)
    }

    fn carry_out(&self, plan: &Plan) -> Result<()> {
        if !self.install {
            bail!(
                "not installed because of `--no-install`: run\n  {}",
                plan.commands()?.join("\n  ")
            );
        }
        // Packages first: which LLVM the linker needs is only sure once the compiler is there.
        if plan.packages.is_empty() {
            return plan.linker.map_or(Ok(()), |llvm| announce(&mut install_linker(llvm)));
        }
        if !process::can_be_root()? {
            bail!(
                "installing packages needs root and there is no sudo: run as root\n  {}\nand then this again",
                plan.apt_commands()?.join("\n  ")
            );
        }
        announce(&mut apt::install(&plan.packages)?)
    }
}

fn announce(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", process::shown(command));
    process::run(command)
}

/// What is going to be installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Debian packages.
    packages: Vec<String>,
    /// bpf-linker, built with this LLVM.
    linker: Option<u32>,
}

impl Plan {
    /// `may_switch`: where there is no LLVM for the linker of the compiler at hand, turn to Debian's compiler.
    fn new(missing: &[Missing], policy: &Policy, may_switch: bool) -> Self {
        let mut plan = Self::default();
        let mut packages = Vec::new();
        for missing in missing {
            match missing {
                Missing::Toolchain => packages.extend(COMPILER.map(str::to_owned)),
                Missing::Linker { llvm } => {
                    let [dev, ..] = &llvm_packages(*llvm);
                    if may_switch
                        && *llvm != DEBIAN_LLVM
                        && (*llvm > NEWEST_LLVM || !policy.offers(dev))
                    {
                        let debian = [Missing::Toolchain, Missing::Linker { llvm: DEBIAN_LLVM }];
                        return Self::new(&debian, policy, false);
                    }
                    plan.linker = Some(*llvm);
                    if env::var_os(LLVM_PREFIX).is_none() {
                        packages.extend(llvm_packages(*llvm));
                    }
                }
            }
        }
        packages.retain(|package| !policy.is_settled(package));
        plan.packages = packages;
        plan
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Finds out whether apt can install all packages, and recent enough ones.
    fn check(&self, policy: &Policy) -> Result<()> {
        if let Some(llvm) = self.linker.filter(|llvm| *llvm > NEWEST_LLVM) {
            bail!(
                "bpf-linker {LINKER_VERSION} cannot be built with LLVM {llvm}: name an older nightly in {TOOLCHAIN_VARIABLE}"
            );
        }
        for package in &self.packages {
            if !policy.offers(package) {
                bail!("{}", self.by_hand(&format!("this distribution has no package `{package}`")));
            }
            let oldest = env!("CARGO_PKG_RUST_VERSION");
            let candidate = policy.candidate(package).filter(|_| package == COMPILER[0]);
            if let Some(candidate) = candidate.filter(|version| number(version) < number(oldest)) {
                let why =
                    format!("this distribution's {package} is {candidate}, older than {oldest}");
                bail!("{}", self.by_hand(&why));
            }
        }
        Ok(())
    }

    fn by_hand(&self, why: &str) -> String {
        let compiler = self.packages.iter().any(|package| COMPILER.contains(&package.as_str()));
        let remedy = match self.linker {
            _ if compiler => {
                "install a nightly with `rustup toolchain install nightly --component rust-src`"
                    .to_owned()
            }
            Some(llvm) => format!(
                "install LLVM {llvm} with its development files, set {LLVM_PREFIX} to its directory"
            ),
            None => format!("install {} by hand", self.packages.join(" ")),
        };
        format!("{why}: {remedy} and run this again")
    }

    /// The commands that install the packages.
    fn apt_commands(&self) -> Result<Vec<String>> {
        if self.packages.is_empty() {
            return Ok(Vec::new());
        }
        let commands = [apt::update()?, apt::install(&self.packages)?];
        Ok(commands.iter().map(process::shown).collect())
    }

    /// All commands, in order.
    fn commands(&self) -> Result<Vec<String>> {
        let mut commands = self.apt_commands()?;
        commands.extend(self.linker.map(|llvm| process::shown(&install_linker(llvm))));
        Ok(commands)
    }
}

/// Qemu's tools have to be of the same version, where there are any: from elsewhere they may be newer, and would have
/// to be taken away.
fn with_its_tools(mut packages: Vec<String>, policy: &Policy) -> Vec<String> {
    const QEMU: &str = GUEST[0];
    if packages.iter().any(|package| package == QEMU)
        && let (Some(version), Some(installed)) =
            (policy.candidate(QEMU), policy.installed(QEMU_TOOLS))
        && version != installed
    {
        packages.push(format!("{QEMU_TOOLS}={version}"));
    }
    packages
}

/// The packages that guests need, by whether what they are needed for is there.
fn missing_for_guests() -> Vec<String> {
    let mke2fs = guest::image::mke2fs();
    // One with libraries does not run in a guest, which has none. It names its loader on its first page.
    let is_static =
        |program: &[u8]| !program.windows(9).take(4096).any(|part| part == b"ld-linux-");
    let are_there = [
        process::on_path(guest::machine::QEMU),
        process::on_path("setpriv"),
        process::on_path("dpkg-deb"),
        fs::read(guest::image::BUSYBOX).is_ok_and(|program| is_static(&program)),
        process::on_path("cpio"),
        process::on_path("xz"),
        mke2fs.is_absolute() || process::on_path("mke2fs"),
        Path::new(guest::archive::KEYRING).is_file(),
    ];
    let missing = GUEST.into_iter().zip(are_there).filter(|(_, is_there)| !is_there);
    missing.map(|(package, _)| package.to_owned()).collect()
}

fn llvm_packages(llvm: u32) -> [String; 3] {
    [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"), "libzstd-dev".to_owned()]
}

/// Every package that a plan may come to.
fn known_packages() -> Vec<String> {
    let llvm = (DEBIAN_LLVM..=NEWEST_LLVM).flat_map(llvm_packages);
    COMPILER
        .into_iter()
        .chain(["rust-web-clippy", readers::PACKAGE, QEMU_TOOLS])
        .chain(GUEST)
        .chain(BROWSER.map(|(package, _)| package))
        .chain(PEERS.map(|(package, _)| package))
        .map(str::to_owned)
        .chain(llvm)
        .collect()
}

fn install_linker(llvm: u32) -> Command {
    let mut cargo = process::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        // One that is there does not start, or has another LLVM.
        .arg("--force")
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    // Meant for memtrace. A static bpf-linker would not find LLVM's shared library.
    for variable in
        ["RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    if env::var_os(LLVM_PREFIX).is_none() {
        cargo.env(LLVM_PREFIX, Path::new("/usr/lib").join(format!("llvm-{llvm}")));
    }
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Missing; 2] = [Missing::Toolchain, Missing::Linker { llvm: DEBIAN_LLVM }];

    fn policy(packages: &[(&str, &str, &str)]) -> Policy {
        let lines = packages.iter().map(|(name, installed, candidate)| {
            format!("{name}:\n  Installed: {installed}\n  Candidate: {candidate}\n")
        });
        Policy::parse(&lines.collect::<String>(), true)
    }

    fn bookworm() -> Policy {
        policy(&[
            ("rustc-web", "(none)", "1.96.0+dfsg1-1~deb12u2"),
            ("cargo-web", "(none)", "1.96.0+dfsg1-1~deb12u2"),
            ("libstd-rust-web-dev-bpf", "(none)", "1.96.0+dfsg1-1~deb12u2"),
            ("llvm-22-dev", "(none)", "1:22.1.8-1~deb12u1"),
            ("libpolly-22-dev", "(none)", "1:22.1.8-1~deb12u1"),
            ("libzstd-dev", "1.5.4+dfsg2-5", "1.5.4+dfsg2-5"),
        ])
    }

    #[test]
    fn only_what_is_not_installed_is_planned() {
        let plan = Plan::new(&BOTH, &bookworm(), true);
        let packages =
            ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "libpolly-22-dev"];
        assert_eq!(plan.packages, packages);
        assert_eq!(plan.linker, Some(22));
        plan.check(&bookworm()).expect("bookworm has all of it");
    }

    #[test]
    fn a_compiler_whose_llvm_is_not_to_be_had_gives_way_to_debians() {
        let plan = Plan::new(&[Missing::Linker { llvm: 23 }], &bookworm(), true);
        assert_eq!(plan, Plan::new(&BOTH, &bookworm(), true));
        let named = Plan::new(&[Missing::Linker { llvm: 23 }], &bookworm(), false);
        assert_eq!(named.linker, Some(23));
        let err = named.check(&bookworm()).expect_err("no LLVM 23");
        assert_eq!(
            format!("{err:#}"),
            "this distribution has no package `llvm-23-dev`: install LLVM 23 with its development files, \
             set LLVM_PREFIX to its directory and run this again"
        );
    }

    #[test]
    fn a_compiler_that_is_too_old_is_refused() {
        let old = policy(&[("rustc-web", "(none)", "1.85.0+dfsg3-1~deb12u3")]);
        let err = Plan::new(&BOTH, &old, true).check(&old).expect_err("too old");
        assert_eq!(
            format!("{err:#}"),
            "this distribution's rustc-web is 1.85.0+dfsg3-1~deb12u3, older than 1.95: install a nightly with \
             `rustup toolchain install nightly --component rust-src` and run this again"
        );
    }

    #[test]
    fn qemus_tools_are_of_its_version() {
        let wanted = |policy: &Policy| {
            with_its_tools(vec!["cpio".to_owned(), "qemu-system-x86".to_owned()], policy)
        };
        let tools = |installed| {
            policy(&[("qemu-system-x86", "(none)", "7.2"), ("qemu-utils", installed, installed)])
        };
        assert_eq!(wanted(&tools("10.0")), ["cpio", "qemu-system-x86", "qemu-utils=7.2"]);
        for settled in ["7.2", "(none)"] {
            assert_eq!(wanted(&tools(settled)), ["cpio", "qemu-system-x86"]);
        }
    }

    #[test]
    fn packages_come_before_the_linker() {
        let plan = Plan::new(&BOTH, &bookworm(), true);
        let commands = plan.commands().expect("commands");
        let [update, install, linker] = commands.as_slice() else {
            panic!("three commands, not {commands:?}");
        };
        assert!(update.ends_with("apt-get -o DPkg::Lock::Timeout=300 update"), "{update}");
        assert!(
            install.contains("--no-install-recommends --no-remove rustc-web cargo-web "),
            "{install}"
        );
        assert!(
            linker.starts_with(
                "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 "
            ),
            "{linker}"
        );
        assert!(linker.ends_with(" --no-default-features --features llvm-22"), "{linker}");
    }
}
