//! Builds the eBPF object and puts it where the library embeds it from: `OUT_DIR/memtrace-ebpf`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

#[path = "../xtask/src/ebpf/mod.rs"]
mod ebpf;

use ebpf::search::{Found, Places, TOOLCHAIN_VARIABLE};

/// Whatever the object is made from, seen from the workspace.
const SOURCES: [&str; 5] =
    ["memtrace-ebpf", "memtrace-common", "xtask/src/ebpf", "Cargo.toml", "Cargo.lock"];

fn main() {
    // A panic or an exit status would bury the message under the script's whole output.
    if let Err(err) = run() {
        for line in format!("{err:#}").lines() {
            println!("cargo::error={line}");
        }
    }
}

fn run() -> Result<()> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir.parent().context("memtrace lies outside its workspace")?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    println!("cargo::rerun-if-env-changed={TOOLCHAIN_VARIABLE}");

    let found = Found::search(&Places::new())?;
    let Some(tools) = found.tools() else {
        bail!(
            "the eBPF probes cannot be built without {}: run `cargo xtask build`, which installs it",
            found.explain(),
        );
    };
    let target_dir = ebpf::target_dir(&out_dir).unwrap_or(&out_dir);
    let object = tools
        .build(workspace, target_dir, &variable("CARGO_CFG_TARGET_ARCH")?)
        .context("cannot build the eBPF probes")?;
    for line in &object.warnings {
        println!("cargo::warning={line}");
    }
    replace(&object.path, &out_dir.join("memtrace-ebpf"))
}

/// Leaves a file that has not changed alone, so that nothing is built again because of it.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo has not set {name}"))
}
