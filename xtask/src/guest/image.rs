//! What a guest boots from: an initramfs that finds the disk, and the disk, an ext4 file system with everything else.
//!
//! A disk rather than memory, so that what the guest runs takes none of the little memory that it has, and because files
//! in memory cannot be reclaimed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernel::{Files, MODULES};
use crate::process;
use crate::programs::{Kind, Program};

/// Has a guest's shell and all small tools.
pub const BUSYBOX: &str = "/bin/busybox";

/// Room on the disk, most of it for the files of loads. What is not used is not there.
const DISK_SIZE: u64 = 2 << 30;

/// What every kernel that can be a guest understands, whatever this machine's mke2fs would choose.
const FEATURES: &str = "none,has_journal,extent,64bit,dir_index,filetype,sparse_super,large_file,huge_file,extra_isize,flex_bg";

/// Makes a disk in `dir` that runs the shell's `command`.
pub fn disk(dir: &Path, programs: &[Program], command: &str) -> Result<PathBuf> {
    let root = dir.join("disk");
    for dir in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tests", "tmp", "var/tmp"] {
        make_dir(&root.join(dir))?;
    }
    for dir in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(dir), Permissions::from_mode(0o1777))
            .context("cannot set permissions")?;
    }
    copy(Path::new(BUSYBOX), &root.join("bin/busybox"))?;
    for applet in process::output(Command::new(BUSYBOX).arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if applet != "busybox" {
            symlink("busybox", &link)
                .with_context(|| format!("cannot make `{}`", link.display()))?;
        }
    }
    for program in programs {
        let is_tool = program.kind == Kind::Tool;
        let to = Path::new(if is_tool { "bin" } else { "tests" }).join(&program.name);
        copy(&program.path, &root.join(&to))?;
        if is_tool {
            // Tests know memload by the path that cargo built it at.
            let built = root.join(program.path.strip_prefix("/").unwrap_or(&program.path));
            make_dir(built.parent().context("a program without a place")?)?;
            symlink(Path::new("/").join(&to), &built)
                .with_context(|| format!("cannot make `{}`", built.display()))?;
        }
    }
    write(&root.join("init"), include_str!("init.sh"), 0o755)?;
    write(&root.join("command"), &format!("{command}\n"), 0o755)?;
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    write(&root.join("etc/passwd"), users, 0o644)?;
    write(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n", 0o644)?;

    let disk = dir.join("disk.img");
    File::create(&disk)
        .and_then(|file| file.set_len(DISK_SIZE))
        .with_context(|| format!("cannot create `{}`", disk.display()))?;
    let mut mke2fs = Command::new(mke2fs());
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", FEATURES])
        // Else the kernel does it, while tests run.
        .args(["-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0", "-d"])
        .args([&root, &disk]);
    process::run(&mut mke2fs)?;
    Ok(disk)
}

/// Makes an initramfs for one kernel in `dir`.
pub fn initramfs(dir: &Path, name: &str, kernel: &Files) -> Result<PathBuf> {
    let root = dir.join(format!("initramfs-{name}"));
    let mut contents =
        vec!["bin", "dev", "disk", "lib"].into_iter().map(str::to_owned).collect::<Vec<_>>();
    for dir in &contents {
        make_dir(&root.join(dir))?;
    }
    copy(Path::new(BUSYBOX), &root.join("bin/busybox"))?;
    write(&root.join("init"), include_str!("boot.sh"), 0o755)?;
    let mut modules = String::new();
    for module in MODULES {
        let file = format!("{module}.ko");
        if kernel.modules.join(&file).is_file() {
            copy(&kernel.modules.join(&file), &root.join("lib").join(&file))?;
            contents.push(format!("lib/{file}"));
            modules.push_str(module);
            modules.push('\n');
        }
    }
    write(&root.join("modules"), &modules, 0o644)?;
    contents.extend(["bin/busybox", "init", "modules"].map(str::to_owned));

    let list = dir.join(format!("initramfs-{name}.list"));
    write(&list, &(contents.join("\n") + "\n"), 0o644)?;
    let archive = dir.join(format!("initramfs-{name}.cpio"));
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "--create", "--format=newc", "--owner=+0:+0"])
        .current_dir(&root)
        .stdin(File::open(&list).context("cannot read the list of the initramfs")?)
        .stdout(File::create(&archive).context("cannot write the initramfs")?);
    let status = cpio.status().context("cannot run cpio")?;
    ensure!(status.success(), "`{}` failed: {status}", process::shown(&cpio));
    Ok(archive)
}

/// Where mke2fs is: not on the search path of an ordinary user.
pub fn mke2fs() -> &'static Path {
    let places = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].map(Path::new);
    places.into_iter().find(|path| path.is_file()).unwrap_or(Path::new("mke2fs"))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("cannot write `{}`", path.display()))
}
