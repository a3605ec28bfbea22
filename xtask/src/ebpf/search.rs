//! Finds the compilers and linkers that can build the eBPF object, and says what is missing where there are none.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{TARGET, Tools, command};

/// Names the toolchain to use: one of rustup's, or the path of a directory with `bin/rustc` and `bin/cargo`.
pub const TOOLCHAIN_VARIABLE: &str = "MEMTRACE_EBPF_TOOLCHAIN";

/// The bpf-linker that is installed. Older ones are passed over.
pub const LINKER_VERSION: &str = "0.13.0";

/// The LLVM of Debian's rustc-web, for which a linker is wanted as long as no compiler says otherwise.
pub const DEBIAN_LLVM: u32 = 22;

/// Where tools are looked for.
#[derive(Debug)]
pub struct Places {
    /// The value of [`TOOLCHAIN_VARIABLE`].
    pub named: Option<OsString>,
    /// The directories of `PATH`, then cargo's own.
    pub path: Vec<PathBuf>,
    /// The directory of the distribution's own compiler.
    pub system: PathBuf,
}

impl Places {
    /// This machine's.
    pub fn new() -> Self {
        let mut path: Vec<PathBuf> =
            env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(env::home_dir()?.join(".cargo")));
        path.extend(cargo_home.map(|home| home.join("bin")));
        Self {
            named: env::var_os(TOOLCHAIN_VARIABLE).filter(|name| !name.is_empty()),
            path,
            system: PathBuf::from("/usr"),
        }
    }

    fn all<'a>(&'a self, program: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.path.iter().map(move |dir| dir.join(program)).filter(|path| path.is_file())
    }
}

/// A compiler that can compile for BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The directory that holds `bin/rustc` and `bin/cargo`.
    pub dir: PathBuf,
    /// Major version of its LLVM.
    pub llvm: u32,
    /// Its `core` for BPF has to be built first, from rust-src.
    pub build_std: bool,
}

impl Toolchain {
    /// The toolchain in `dir`, or why it will not do.
    fn at(dir: &Path) -> Result<Self> {
        let bin = dir.join("bin");
        for program in ["rustc", "cargo"] {
            if !bin.join(program).is_file() {
                bail!("no {program}");
            }
        }
        let rustc = bin.join("rustc");
        let version = Version::parse(&output(command(&rustc).arg("-vV"))?)?;
        let oldest = env!("CARGO_PKG_RUST_VERSION");
        if number(&version.release) < number(oldest) {
            bail!("rustc {} is older than {oldest}", version.release);
        }
        let sysroot = output(command(&rustc).args(["--print", "sysroot"]))?;
        let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
        let has_core = rustlib.join(TARGET).is_dir();
        if !has_core && !rustlib.join("src/rust/library").is_dir() {
            bail!("neither a `core` for {TARGET} nor rust-src");
        }
        Ok(Self { dir: dir.to_owned(), llvm: version.llvm, build_std: !has_core })
    }
}

/// A bpf-linker that starts and is not too old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    /// Major version of its LLVM, where it tells.
    pub llvm: Option<u32>,
}

impl Linker {
    fn at(path: &Path) -> Result<Self> {
        let said = output(command(path).arg("--version"))?;
        let version = said.split_whitespace().next_back().unwrap_or_default();
        if number(version) < number(LINKER_VERSION) {
            bail!("version {version} is older than {LINKER_VERSION}");
        }
        let program = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { llvm: linked_llvm(&program), path: path.to_owned() })
    }

    /// LLVM reads the bitcode of its own and of older versions.
    fn reads(&self, llvm: u32) -> bool {
        self.llvm.is_none_or(|own| own >= llvm)
    }
}

/// What was found, best first, and why something was passed over.
#[derive(Debug, Default)]
pub struct Found {
    /// Compilers for BPF.
    pub toolchains: Vec<Toolchain>,
    /// Linkers for BPF.
    pub linkers: Vec<Linker>,
    /// One line for each tool that is there and will not do.
    pub passed_over: Vec<String>,
}

impl Found {
    /// Looks for tools in `places`.
    pub fn search(places: &Places) -> Result<Self> {
        let mut found = Self::default();
        let rustup = places.all("rustup").next();
        let rustup = rustup.map(|program| Rustup::new(&program)).transpose()?.unwrap_or_default();
        if let Some(name) = &places.named {
            // Whoever names a toolchain means that one: another in its place would be a surprise.
            let toolchain = rustup.named(name).and_then(|dir| Toolchain::at(&dir));
            let toolchain = toolchain
                .with_context(|| format!("{TOOLCHAIN_VARIABLE}={} will not do", name.display()))?;
            found.toolchains.push(toolchain);
        } else {
            for dir in rustup.nightlies().into_iter().chain([places.system.as_path()]) {
                let toolchain = Toolchain::at(dir);
                found.toolchains.extend(keep(toolchain, dir, &mut found.passed_over));
            }
        }
        for path in places.all("bpf-linker") {
            let linker = Linker::at(&path);
            found.linkers.extend(keep(linker, &path, &mut found.passed_over));
        }
        Ok(found)
    }

    /// The first compiler for which there is a linker, and that linker.
    pub fn tools(&self) -> Option<Tools<'_>> {
        self.toolchains.iter().find_map(|toolchain| {
            let linker = self.linkers.iter().find(|linker| linker.reads(toolchain.llvm))?;
            Some(Tools { toolchain, linker })
        })
    }

    /// What has to be added before [`Self::tools`] finds something.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        // Of several compilers the one with the oldest LLVM is the easiest to find a linker for.
        let llvm = self.toolchains.iter().map(|toolchain| toolchain.llvm).min();
        if llvm.is_none() {
            missing.push(Missing::Toolchain);
        }
        let llvm = llvm.unwrap_or(DEBIAN_LLVM);
        if !self.linkers.iter().any(|linker| linker.reads(llvm)) {
            missing.push(Missing::Linker { llvm });
        }
        missing
    }

    /// What is missing, and why what is there will not do, in one line.
    pub fn explain(&self) -> String {
        let missing: Vec<_> = self.missing().iter().map(ToString::to_string).collect();
        let missing = missing.join(" and ");
        if self.passed_over.is_empty() {
            return missing;
        }
        format!("{missing} (passed over: {})", self.passed_over.join("; "))
    }
}

fn keep<T>(tool: Result<T>, path: &Path, passed_over: &mut Vec<String>) -> Option<T> {
    tool.map_err(|why| passed_over.push(format!("{}: {why:#}", path.display()).replace('\n', " ")))
        .ok()
}

/// Something without which the object cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no compiler for BPF.
    Toolchain,
    /// There is no linker that reads the bitcode of the compiler's LLVM.
    Linker {
        /// Major version of the compiler's LLVM.
        llvm: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toolchain => f.write_str(
                "a compiler for BPF (Debian's rustc-web, or a rustup nightly with rust-src)",
            ),
            Self::Linker { llvm } => write!(f, "bpf-linker {LINKER_VERSION} with LLVM {llvm}"),
        }
    }
}

/// The toolchains that rustup has, by name.
#[derive(Debug, Default)]
struct Rustup {
    toolchains: Vec<(String, PathBuf)>,
}

impl Rustup {
    fn new(program: &Path) -> Result<Self> {
        Ok(Self::parse(&output(command(program).args(["toolchain", "list", "--verbose"]))?))
    }

    /// Reads lines such as `nightly-x86_64-unknown-linux-gnu (active, default) /home/me/.rustup/toolchains/nightly-...`.
    fn parse(list: &str) -> Self {
        let toolchains = list.lines().filter_map(|line| {
            let (name, rest) = line.split_once(char::is_whitespace)?;
            let dir = rest.find('/').map(|at| &rest[at..])?;
            Some((name.to_owned(), PathBuf::from(dir)))
        });
        Self { toolchains: toolchains.collect() }
    }

    /// The nightlies' directories: the plain one, then those of a date, the latest first.
    fn nightlies(&self) -> Vec<&Path> {
        let mut nightlies: Vec<_> =
            self.toolchains.iter().filter(|(name, _)| name.starts_with("nightly")).collect();
        let dated = |name: &str| name.starts_with("nightly-2");
        nightlies.sort_by(|(a, _), (b, _)| dated(a).cmp(&dated(b)).then(b.cmp(a)));
        nightlies.into_iter().map(|(_, dir)| dir.as_path()).collect()
    }

    /// The directory of the toolchain that a user calls `name`, which may leave out the host.
    fn named(&self, name: &OsStr) -> Result<PathBuf> {
        if Path::new(name).is_dir() {
            return Ok(PathBuf::from(name));
        }
        let wanted = name.to_str().context("not a name")?;
        self.toolchains
            .iter()
            .find(|(name, _)| {
                name.strip_prefix(wanted)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            })
            .map(|(_, dir)| dir.clone())
            .context("neither a directory nor a toolchain of rustup's")
    }
}

/// What matters of `rustc -vV`.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    release: String,
    llvm: u32,
}

impl Version {
    fn parse(said: &str) -> Result<Self> {
        let field = |name: &str| {
            said.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("rustc -vV says nothing of `{name}`"))
        };
        let llvm = field("LLVM version")?;
        Ok(Self { release: field("release")?.to_owned(), llvm: number(llvm).0 })
    }
}

/// Major and minor part of a version; what is not a number counts as 0.
pub fn number(version: &str) -> (u32, u32) {
    let mut parts =
        version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// bpf-linker has no option that tells its LLVM, but names the shared library that it wants.
fn linked_llvm(program: &[u8]) -> Option<u32> {
    const LIBRARY: &[u8] = b"libLLVM.so.";
    let at = program.windows(LIBRARY.len()).position(|bytes| bytes == LIBRARY)?;
    let version = program[at + LIBRARY.len()..].split(|byte| !byte.is_ascii_digit()).next()?;
    str::from_utf8(version).ok()?.parse().ok()
}

/// What `command` prints.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", program.display(), stderr.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not text", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of shell scripts in a directory of its own.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn script(&self, path: &str, body: &str) {
            // Written by a child: a script that this process holds open while another test forks cannot be run.
            let text = self.path("script");
            fs::write(&text, format!("#!/bin/sh\n{body}\n")).expect("a file");
            let mut install = Command::new("install");
            install.args(["-D", "-m755"]).args([text, self.path(path)]);
            assert!(install.status().expect("coreutils").success());
        }

        fn toolchain(&self, dir: &str, release: &str, llvm: &str, has: &str) {
            let sysroot = self.path(dir);
            let body = format!(
                "case $1 in -vV) printf 'release: {release}\\nLLVM version: {llvm}\\n';; *) echo '{}';; esac",
                sysroot.display()
            );
            self.script(&format!("{dir}/bin/rustc"), &body);
            self.script(&format!("{dir}/bin/cargo"), "");
            fs::create_dir_all(sysroot.join("lib/rustlib").join(has)).expect("a directory");
        }

        fn linker(&self, version: &str, llvm: u32) {
            self.script(
                "bin/bpf-linker",
                &format!("echo bpf-linker {version} # libLLVM.so.{llvm}.1"),
            );
        }

        fn rustup(&self, names: &[&str]) {
            let line =
                |name: &&str| format!("echo '{name} (active) {}'", self.path(name).display());
            let body: Vec<_> = names.iter().map(line).collect();
            self.script("bin/rustup", &body.join("\n"));
        }

        fn places(&self) -> Places {
            Places { named: None, path: vec![self.path("bin")], system: self.path("usr") }
        }

        fn search(&self) -> Found {
            Found::search(&self.places()).expect("a search")
        }
    }

    const BPF_CORE: &str = TARGET;
    const RUST_SRC: &str = "src/rust/library";

    #[test]
    fn an_empty_machine_lacks_both_tools() {
        let found = Machine::new().search();
        assert!(found.tools().is_none());
        assert_eq!(found.missing(), [Missing::Toolchain, Missing::Linker { llvm: DEBIAN_LLVM }]);
    }

    #[test]
    fn debians_compiler_and_a_linker_are_enough() {
        let machine = Machine::new();
        machine.toolchain("usr", "1.96.0", "22.1.8", BPF_CORE);
        assert_eq!(machine.search().missing(), [Missing::Linker { llvm: 22 }]);
        machine.linker("0.13.0", 22);
        let found = machine.search();
        let tools = found.tools().expect("tools");
        assert_eq!(tools.toolchain.dir, machine.path("usr"));
        assert!(!tools.toolchain.build_std);
        assert_eq!(found.missing(), []);
    }

    #[test]
    fn a_nightly_with_rust_src_comes_before_debians_compiler() {
        let machine = Machine::new();
        machine.toolchain("usr", "1.96.0", "22.1.8", BPF_CORE);
        machine.toolchain("nightly-x", "1.97.0-nightly", "22.1.4", RUST_SRC);
        machine.rustup(&["stable-x", "nightly-x"]);
        machine.linker("0.13.0", 22);
        let found = machine.search();
        let tools = found.tools().expect("tools");
        assert_eq!(tools.toolchain.dir, machine.path("nightly-x"));
        assert!(tools.toolchain.build_std);
    }

    #[test]
    fn a_nightly_that_the_linker_cannot_read_is_not_used() {
        let machine = Machine::new();
        machine.toolchain("usr", "1.96.0", "22.1.8", BPF_CORE);
        machine.toolchain("nightly-x", "1.99.0-nightly", "23.1.0", RUST_SRC);
        machine.rustup(&["nightly-x"]);
        machine.linker("0.13.0", 22);
        let found = machine.search();
        assert_eq!(found.tools().expect("tools").toolchain.dir, machine.path("usr"));
    }

    #[test]
    fn what_will_not_do_is_explained() {
        let machine = Machine::new();
        machine.toolchain("usr", "1.85.0", "20.1.0", BPF_CORE);
        machine.toolchain("nightly-x", "1.97.0-nightly", "22.1.4", "etc");
        machine.rustup(&["nightly-x"]);
        machine.linker("0.10.1", 21);
        let explained = machine.search().explain();
        for part in [
            "a compiler for BPF",
            "and bpf-linker 0.13.0 with LLVM 22",
            "nightly-x: neither a `core` for bpfel-unknown-none nor rust-src",
            "usr: rustc 1.85.0 is older than 1.95",
            "bpf-linker: version 0.10.1 is older than 0.13.0",
        ] {
            assert!(explained.contains(part), "no `{part}` in: {explained}");
        }
    }

    #[test]
    fn a_named_toolchain_is_the_only_one_considered() {
        let machine = Machine::new();
        machine.toolchain("usr", "1.96.0", "22.1.8", BPF_CORE);
        machine.toolchain("mine", "1.98.0", "22.1.8", RUST_SRC);
        machine.linker("0.13.0", 22);
        let named = |name: &OsStr| {
            Found::search(&Places { named: Some(name.to_owned()), ..machine.places() })
        };
        let found = named(machine.path("mine").as_os_str()).expect("a search");
        assert_eq!(found.tools().expect("tools").toolchain.dir, machine.path("mine"));
        let err = named(OsStr::new("theirs")).expect_err("no such toolchain");
        assert_eq!(
            format!("{err:#}"),
            "MEMTRACE_EBPF_TOOLCHAIN=theirs will not do: neither a directory nor a toolchain of rustup's"
        );
    }

    #[test]
    fn rustups_list_is_read() {
        let rustup = Rustup::parse(
            "stable-x86_64-unknown-linux-gnu (active, default) /home/a b/toolchains/stable\n\
             nightly-2026-01-02-x86_64-unknown-linux-gnu /r/older\n\
             nightly-2026-05-19-x86_64-unknown-linux-gnu /r/newer\n\
             nightly-x86_64-unknown-linux-gnu /r/plain\n\
             no toolchains installed\n",
        );
        assert_eq!(rustup.nightlies(), ["/r/plain", "/r/newer", "/r/older"].map(Path::new));
        let named = |name: &str| rustup.named(OsStr::new(name)).ok();
        assert_eq!(named("stable"), Some("/home/a b/toolchains/stable".into()));
        assert_eq!(named("nightly-2026-01-02"), Some("/r/older".into()));
        assert_eq!(named("night"), None);
    }

    #[test]
    fn rustcs_version_is_read() {
        let said = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let expected = Version { release: "1.97.0-nightly".to_owned(), llvm: 22 };
        assert_eq!(Version::parse(said).expect("a version"), expected);
        let err = Version::parse("rustc 1.97.0").expect_err("nothing to read");
        assert_eq!(format!("{err:#}"), "rustc -vV says nothing of `LLVM version`");
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(number("1.100.0") > number("1.95"));
        assert_eq!(number("1.96.0+dfsg1-1~deb12u2"), (1, 96));
        assert_eq!(number("0.13.0"), (0, 13));
    }

    #[test]
    fn the_linkers_llvm_is_found_in_the_program() {
        assert_eq!(linked_llvm(b"\0libz.so.1\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"\0libz.so.1\0"), None);
    }
}
