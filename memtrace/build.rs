//! Builds the eBPF objects and puts them where the library embeds them from: `OUT_DIR`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

#[path = "../xtask/src/ebpf/mod.rs"]
mod ebpf;

use ebpf::search::{Found, Places, TOOLCHAIN_VARIABLE};

/// The probes, and the iterator of `memtrace now`.
const OBJECTS: [&str; 2] = ["memtrace-ebpf", "memtrace-now"];

/// Whatever the objects are made from, seen from the workspace.
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
    let layout = manifest_dir.join("offline.ld");
    println!("cargo::rerun-if-changed={}", layout.display());
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", layout.display());

    let found = Found::search(&Places::new())?;
    let Some(tools) = found.tools() else {
        bail!(
            "the eBPF probes cannot be built without {}: run `cargo xtask build`, which installs it",
            found.explain(),
        );
    };
    let target_dir = ebpf::target_dir(&out_dir).unwrap_or(&out_dir);
    let objects = tools
        .build(workspace, target_dir, &variable("CARGO_CFG_TARGET_ARCH")?)
        .context("cannot build the eBPF probes")?;
    for line in &objects.warnings {
        println!("cargo::warning={line}");
    }
    for name in OBJECTS {
        let path = objects.folder.join(name);
        let built = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let stripped = without_debug_information(&built).context("cannot strip the eBPF probes")?;
        replace(&stripped, &out_dir.join(name))?;
    }
    Ok(())
}

/// Three quarters of an object describe it to debuggers, in sections that neither the loader nor the
/// kernel reads. They would be a quarter of memtrace. Of the rest more than half are its source lines
/// (`.BTF.ext`), which the kernel would show beside its instructions: the loader would read them while memtrace
/// takes most of its memory.
fn without_debug_information(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name: &[u8] = &section.name;
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug_") || name == b".BTF.ext";
    }
    // LLVM keeps the names of sections with those of symbols, which the builder does not.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// Leaves a file that has not changed alone, so that nothing is built again because of it.
fn replace(new: &[u8], to: &Path) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo has not set {name}"))
}
