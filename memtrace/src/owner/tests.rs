use super::*;

const ID: &str = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809";
const OTHER: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";
const UID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

/// The short form of the owner of a path, in which ID, OTHER, UID and UID_ stand for the constants.
fn short(path: &str) -> Option<String> {
    let path = path
        .replace("UID_", &UID.replace('-', "_"))
        .replace("UID", UID)
        .replace("ID", ID)
        .replace("OTHER", OTHER);
    Owner::of(path.as_bytes()).map(|owner| owner.to_string())
}

#[test]
fn every_known_layout() {
    for (path, shown) in [
        // systemd.
        ("/init.scope", "init.scope"),
        ("/system.slice", "system.slice"),
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/workers", "nginx.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/dev-disk-by\\x2dlabel-a.swap", "dev-disk-by-label-a.swap"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/user.slice", "user.slice"),
        ("/user.slice/user-1000.slice", "user:1000/user-1000.slice"),
        ("/user.slice/user-1000.slice/session-3.scope", "user:1000/session-3.scope"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-4711.scope",
            "user:1000/app-gnome-firefox-4711.scope",
        ),
        (
            "/machine.slice/machine-qemu\\x2d1\\x2ddb.scope/libvirt/emulator",
            "machine-qemu-1-db.scope",
        ),
        // Docker.
        ("/docker/ID", "docker:1a2b3c4d5e6f"),
        ("/system.slice/docker-ID.scope", "docker:1a2b3c4d5e6f"),
        ("/batch.slice/batch-night.slice/docker-ID.scope", "docker:1a2b3c4d5e6f"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            "docker:1a2b3c4d5e6f",
        ),
        ("/docker/ID/system.slice/nginx.service", "docker:1a2b3c4d5e6f/nginx.service"),
        ("/docker/ID/init.scope", "docker:1a2b3c4d5e6f/init.scope"),
        ("/docker/OTHER/docker/ID", "docker:1a2b3c4d5e6f"),
        ("/system.slice/docker-OTHER.scope/docker/ID", "docker:1a2b3c4d5e6f"),
        ("/system.slice/docker.service/system.slice:docker:ID", "docker:1a2b3c4d5e6f"),
        ("/system.slice/docker.service", "docker.service"),
        // containerd by itself.
        ("/system.slice/nerdctl-ID.scope", "containerd:1a2b3c4d5e6f"),
        // Podman.
        ("/machine.slice/libpod-ID.scope", "podman:1a2b3c4d5e6f"),
        ("/machine.slice/libpod-ID.scope/container", "podman:1a2b3c4d5e6f"),
        ("/machine.slice/libpod-conmon-ID.scope", "podman-monitor:1a2b3c4d5e6f"),
        ("/libpod_parent/libpod-ID", "podman:1a2b3c4d5e6f"),
        ("/system.slice/web.service/libpod-payload-ID", "podman:1a2b3c4d5e6f"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "podman:1a2b3c4d5e6f",
        ),
        // Kubernetes, its cgroups made by itself or by systemd.
        ("/kubepods.slice", "kubepods.slice"),
        ("/kubepods/podUID/ID", "pod:guaranteed/6ba7b810/container:1a2b3c4d5e6f"),
        ("/kubepods/burstable/podUID", "pod:burstable/6ba7b810"),
        ("/kubepods/burstable/podUID/ID", "pod:burstable/6ba7b810/container:1a2b3c4d5e6f"),
        ("/kubepods/besteffort/podUID/crio-ID", "pod:besteffort/6ba7b810/crio:1a2b3c4d5e6f"),
        (
            "/kubepods/burstable/pod00112233445566778899aabbccddeeff/ID",
            "pod:burstable/00112233/container:1a2b3c4d5e6f",
        ),
        ("/kubepods.slice/kubepods-podUID_.slice", "pod:guaranteed/6ba7b810"),
        (
            "/kubepods.slice/kubepods-podUID_.slice/cri-containerd-ID.scope",
            "pod:guaranteed/6ba7b810/containerd:1a2b3c4d5e6f",
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
            "pod:burstable/6ba7b810/containerd:1a2b3c4d5e6f",
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/crio-ID.scope/container",
            "pod:besteffort/6ba7b810/crio:1a2b3c4d5e6f",
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/crio-conmon-ID.scope",
            "pod:besteffort/6ba7b810/crio-monitor:1a2b3c4d5e6f",
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/docker-ID.scope",
            "pod:burstable/6ba7b810/docker:1a2b3c4d5e6f",
        ),
        (
            "/system.slice/containerd.service/kubepods-burstable-podUID_.slice:cri-containerd:ID",
            "pod:burstable/6ba7b810/containerd:1a2b3c4d5e6f",
        ),
        // A cluster in containers: the innermost counts.
        (
            "/docker/OTHER/kubelet/kubepods/burstable/podUID/ID",
            "pod:burstable/6ba7b810/container:1a2b3c4d5e6f",
        ),
        (
            "/system.slice/docker-OTHER.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
            "pod:besteffort/6ba7b810/containerd:1a2b3c4d5e6f",
        ),
        // Docker in a pod.
        (
            "/kubepods/burstable/podUID/OTHER/docker/ID",
            "pod:burstable/6ba7b810/docker:1a2b3c4d5e6f",
        ),
        // LXC.
        ("/lxc.payload.web1", "lxc:web1"),
        ("/lxc.payload.web1/system.slice/nginx.service", "lxc:web1/nginx.service"),
        ("/lxc.payload/web1", "lxc:web1"),
        ("/lxc/101/ns", "lxc:101"),
        ("/lxc.monitor.web1", "lxc-monitor:web1"),
        ("/lxc.monitor/web1", "lxc-monitor:web1"),
        // Amazon's.
        ("/ecs/0a1b2c3d4e5f/ID", "container:1a2b3c4d5e6f"),
        ("/ecstasks.slice/ecstasks-0a1b.slice/docker-ID.scope", "docker:1a2b3c4d5e6f"),
    ] {
        assert_eq!(short(path).as_deref(), Some(shown), "{path}");
    }
}

#[test]
fn what_is_not_recognised_is_only_its_path() {
    for path in [
        "",
        "/",
        "//",
        "/memload-29838-0",
        "/ID",
        "/batch/ID",
        "/docker",
        "/docker/1a2b3c4d5e6f",
        "/docker/buildkit/abc",
        "/docker/X/ID",
        "/kubepods/burstable",
        "/kubepods/burstable/podX",
        "/burstable/podUID",
        "/kubepods/other/podUID",
        "/pods/podUID/x",
        "/lxc",
        "/lxc.payload.",
        "/.service",
        "/service",
        "/a.timer",
        "/a b.service",
        "/é.service",
        "/default/web",
    ] {
        assert_eq!(short(path), None, "{path}");
    }
    // Wrong digits, too few and too many: nothing but a unit, where it has the form of one.
    for (path, shown) in [
        (format!("/docker-{}.scope", ID.to_uppercase()), true),
        (format!("/docker-{}.scope", &ID[1..]), true),
        (format!("/docker-{ID}0.scope"), true),
        (format!("/docker/{}g", &ID[1..]), false),
        (format!("/crio-{}", &ID[1..]), false),
        (format!("/kubepods-pod{}.slice", &UID[1..]), true),
        (format!("/xkubepods-pod{UID}.slice"), true),
        (format!("/kubepods-pod{}.slice", UID.replace('-', "0")), true),
        (format!("/system.slice:docker:{ID}:x"), false),
        (format!("/system.slice:rkt:{ID}"), false),
    ] {
        let owner = Owner::of(path.as_bytes());
        assert_eq!(owner.is_some(), shown, "{path}");
        let owner = owner.unwrap_or_default();
        assert_eq!((owner.container, owner.pod), (None, None), "{path}");
    }
}

#[test]
fn names_of_any_length_and_bytes_are_shown_within_bounds() {
    let long = "a".repeat(4096);
    let unit = format!("/{}.service", "a".repeat(247));
    let hostile: [&[u8]; 8] = [
        format!("/{long}.service").as_bytes().to_vec().leak(),
        unit.as_bytes().to_vec().leak(),
        b"/lxc.payload.\xff\xfe\x1b[2J",
        b"/lxc/\xe2\x80\xaetxt",
        b"/system.slice/a\\x1b\\x5b2J.service",
        b"/system.slice/a\\xzz\\x.service",
        b"/\xff.service",
        format!("/lxc.payload.{long}").as_bytes().to_vec().leak(),
    ];
    let shown: Vec<_> =
        hostile.iter().map(|path| Owner::of(path).map(|owner| owner.to_string())).collect();
    for shown in shown.iter().flatten() {
        assert!(shown.chars().count() <= WIDTH, "{shown}");
        assert!(!shown.contains(crate::text::is_hidden), "{shown}");
    }
    assert_eq!(shown[0], None);
    let cut = shown[1].as_deref().unwrap_or_default();
    assert!(cut.starts_with("aaaa") && cut.contains("...") && cut.ends_with(".service"), "{cut}");
    assert_eq!(shown[2].as_deref(), Some("lxc:\\xff\\xfe\\x1b[2J"));
    assert_eq!(shown[3].as_deref(), Some("lxc:\\xe2\\x80\\xaetxt"));
    assert_eq!(shown[4].as_deref(), Some("a\\x1b[2J.service"));
    assert_eq!(shown[5].as_deref(), Some("a\\xzz\\x.service"));
    assert_eq!(shown[6], None);
}

#[test]
fn no_bytes_bring_it_down() {
    // Every piece of a name that means something, in every order of three.
    let pieces: [&[u8]; 12] = [
        b"",
        b"/",
        b"-pod",
        b".slice",
        b"kubepods",
        b":",
        b"docker-",
        b"\\x2",
        b"\xff",
        b"_",
        b"lxc.payload.",
        ID.as_bytes(),
    ];
    for a in pieces {
        for b in pieces {
            for c in pieces {
                for path in [[a, b, c, b".scope"].concat(), [b"/kubepods/", a, b, c].concat()] {
                    let shown = Owner::of(&path).map(|owner| owner.to_string());
                    assert!(shown.is_none_or(|shown| !shown.is_empty() && shown.chars().count() <= WIDTH));
                }
            }
        }
    }
}

#[test]
fn json_has_every_part_in_full() -> serde_json::Result<()> {
    let path = format!("/kubepods/burstable/pod{UID}/{ID}");
    let json = serde_json::to_value(Owner::of(path.as_bytes()))?;
    let expected = serde_json::json!({
        "name": "pod:burstable/6ba7b810/container:1a2b3c4d5e6f",
        "unit": null, "user": null, "runtime": null, "container": ID, "monitor": false,
        "pod": UID, "qos": "burstable",
    });
    assert_eq!(json, expected);
    let unit = "/user.slice/user-7.slice/user@7.service/a\\x2db.service";
    let json = serde_json::to_value(Owner::of(unit.as_bytes()))?;
    assert_eq!((&json["unit"], &json["user"]), (&"a\\x2db.service".into(), &7.into()));
    let json = serde_json::to_value(Owner::of(b"/lxc.payload.\xff"))?;
    assert_eq!((&json["runtime"], &json["container"]), (&"lxc".into(), &"\\xff".into()));
    Ok(())
}
