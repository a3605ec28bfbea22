//! The one place that knows how the eBPF object is built: `search` finds the compiler and the linker, this file tells
//! them what to do. Neither installs anything.
//!
//! `memtrace/build.rs` includes this folder as it stands, so it uses nothing but std and anyhow.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

pub mod search;

use search::{Linker, TOOLCHAIN_VARIABLE, Toolchain};

const TARGET: &str = "bpfel-unknown-none";
/// The profile of `Cargo.toml` that the probes are built with.
const PROFILE: &str = "ebpf";

/// What LLVM says of bitcode that is newer than itself.
const TOO_NEW: [&str; 3] = ["Invalid record", "Unknown attribute kind", "Producer: 'LLVM"];

/// A compiler and a linker that go together.
#[derive(Debug)]
pub struct Tools<'a> {
    /// The compiler.
    pub toolchain: &'a Toolchain,
    /// The linker.
    pub linker: &'a Linker,
}

/// The built objects.
#[derive(Debug)]
pub struct Objects {
    /// The folder of the ELF files, each of the name of its program.
    pub folder: PathBuf,
    /// What the compiler had to say, by line.
    pub warnings: Vec<String>,
}

impl Tools<'_> {
    /// Builds the objects from `workspace`, to run on `arch`, in a folder of its own under `target_dir`: all
    /// profiles and both `build.rs` and xtask share it.
    pub fn build(&self, workspace: &Path, target_dir: &Path, arch: &str) -> Result<Objects> {
        // The build around this one has just brought Cargo.lock up to date; another cargo version must not rewrite it.
        let mut cargo = self.cargo("cargo", "build", workspace, target_dir, arch);
        let cargo = cargo.arg("--locked");
        let said = cargo
            .output()
            .with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
        let stderr = String::from_utf8_lossy(&said.stderr);
        if !said.status.success() {
            bail!(
                "the compiler in {} failed\n{}{}",
                self.toolchain.dir.display(),
                stderr.trim_end(),
                self.remedy(&stderr)
            );
        }
        Ok(Objects {
            folder: target_dir.join("ebpf").join(TARGET).join(PROFILE),
            warnings: stderr.lines().map(str::to_owned).collect(),
        })
    }

    /// The toolchain's `program` (`cargo` or one of its companions) set up to run `subcommand` on the probes.
    pub fn cargo(
        &self,
        program: &str,
        subcommand: &str,
        workspace: &Path,
        target_dir: &Path,
        arch: &str,
    ) -> Command {
        let bin = self.toolchain.dir.join("bin");
        let flags = [
            format!("-Clinker={}", self.linker.path.display()),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            format!("--cfg=bpf_target_arch=\"{arch}\""),
        ];
        let mut cargo = command(&bin.join(program));
        cargo
            .current_dir(workspace)
            .args([
                subcommand,
                "--quiet",
                "--profile",
                PROFILE,
                "--package=memtrace-ebpf",
                "--target",
                TARGET,
            ])
            .arg("--target-dir")
            .arg(target_dir.join("ebpf"))
            .env("CARGO", bin.join("cargo"))
            .env("RUSTC", bin.join("rustc"))
            // aya-ebpf is behind a feature gate of the compiler.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        if self.toolchain.build_std {
            cargo.arg("-Zbuild-std=core");
        }
        cargo
    }

    fn remedy(&self, stderr: &str) -> String {
        if !TOO_NEW.iter().any(|sign| stderr.contains(sign)) {
            return String::new();
        }
        let (linker, llvm) = (self.linker.path.display(), self.toolchain.llvm);
        format!(
            "\n{linker} cannot read what the compiler in {} wrote, whose LLVM {llvm} is newer: \
             build bpf-linker with LLVM {llvm}, or name an older compiler in {TOOLCHAIN_VARIABLE}",
            self.toolchain.dir.display(),
        )
    }
}

/// The folder that all of cargo's profiles have in common, seen from a path inside it. Cargo marks it, and marks the one
/// in it of a target that was asked for by name as well.
pub fn target_dir(inside: &Path) -> Option<&Path> {
    let target = env::var_os("TARGET");
    let is_of_target = |dir: &Path| dir.file_name() == target.as_deref();
    inside.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file() && !is_of_target(dir))
}

/// `program`, knowing nothing of the build that runs around it.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_build) {
            command.env_remove(name);
        }
    }
    command
}

/// cargo and rustup hand the compiler, flags and profile of their build on to whatever they start. Only what says
/// where things are and how they are fetched holds for another build too.
fn is_of_outer_build(variable: &str) -> bool {
    const HOLDS: [&str; 9] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "RUSTUP_DIST_SERVER",
        "RUSTUP_HOME",
        "RUST_BACKTRACE",
    ];
    ["CARGO", "RUST"].iter().any(|prefix| variable.starts_with(prefix))
        && !HOLDS.iter().any(|name| variable.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_outer_builds_variables_are_taken_away() {
        for taken in [
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            assert!(is_of_outer_build(taken), "{taken}");
        }
        for kept in [
            "PATH",
            "CARGO_HOME",
            "RUSTUP_HOME",
            "CARGO_HTTP_CAINFO",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_X_TOKEN",
        ] {
            assert!(!is_of_outer_build(kept), "{kept}");
        }
    }

    #[test]
    fn bitcode_that_is_too_new_brings_the_remedy() {
        let toolchain = Toolchain { dir: "/opt/rust".into(), llvm: 23, build_std: true };
        let linker = Linker { path: "/opt/bin/bpf-linker".into(), llvm: None };
        let tools = Tools { toolchain: &toolchain, linker: &linker };
        let remedy = tools.remedy(
            "error: Unknown attribute kind (102) (Producer: 'LLVM23.1.0' Reader: 'LLVM 22.1.8')",
        );
        assert!(remedy.contains("build bpf-linker with LLVM 23"), "{remedy}");
        assert_eq!(tools.remedy("error[E0308]: mismatched types"), "");
    }
}
