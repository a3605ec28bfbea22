//! What one name in a cgroup's path says, given what is above it.

use super::{Container, Parent, Pod, Qos, Runtime};

/// What systemd has cgroups for (systemd.unit(5)): also a mount or swap area is set up by a process.
const UNITS: [&str; 6] = ["service", "scope", "slice", "mount", "socket", "swap"];

/// Longest name of a unit (`UNIT_NAME_MAX`).
const LONGEST_UNIT: usize = 255;

/// Digits of a container's id.
const ID_DIGITS: usize = 64;

/// What stands before a container's id in the name of its scope, or of its cgroup where systemd is not
/// asked; the longer ones first.
const SCOPES: [(&str, Runtime, bool); 9] = [
    ("docker-", Runtime::Docker, false),
    ("cri-containerd-", Runtime::Containerd, false),
    ("containerd-", Runtime::Containerd, false),
    ("nerdctl-", Runtime::Containerd, false),
    ("crio-conmon-", Runtime::Crio, true),
    ("crio-", Runtime::Crio, false),
    ("libpod-conmon-", Runtime::Podman, true),
    ("libpod-payload-", Runtime::Podman, false),
    ("libpod-", Runtime::Podman, false),
];

/// The container of the cgroup `part` below `parent`.
pub(super) fn container(part: &[u8], parent: Option<Parent>) -> Option<Container<'_>> {
    for (prefix, monitor) in [("lxc.payload.", false), ("lxc.monitor.", true)] {
        if let Some(id @ [_, ..]) = part.strip_prefix(prefix.as_bytes()) {
            return Some(Container { runtime: Some(Runtime::Lxc), id, monitor });
        }
    }
    match parent {
        Some(lxc @ (Parent::Lxc | Parent::LxcMonitor)) => {
            let monitor = lxc == Parent::LxcMonitor;
            return Some(Container { runtime: Some(Runtime::Lxc), id: part, monitor });
        }
        Some(Parent::Docker | Parent::Any) if is_id(part) => {
            let runtime = (parent == Some(Parent::Docker)).then_some(Runtime::Docker);
            return Some(Container { runtime, id: part, monitor: false });
        }
        _ => {}
    }
    let name = part.strip_suffix(b".scope").unwrap_or(part);
    SCOPES.iter().find_map(|&(prefix, runtime, monitor)| {
        let id = name.strip_prefix(prefix.as_bytes()).filter(|id| is_id(id))?;
        Some(Container { runtime: Some(runtime), id, monitor })
    })
}

/// `SLICE:PREFIX:ID`, which is meant for systemd, as the name of a cgroup: what a runtime makes of it
/// that was not told to ask systemd.
pub(super) fn colon_separated(part: &[u8]) -> Option<(Option<Pod>, Container<'_>)> {
    let mut fields = part.split(|&byte| byte == b':');
    let (slice, prefix, id) = (fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() || !slice.ends_with(b".slice") || !is_id(id) {
        return None;
    }
    let &(_, runtime, monitor) = SCOPES
        .iter()
        .find(|(known, ..)| known.strip_suffix('-').map(str::as_bytes) == Some(prefix))?;
    Some((pod(slice, None), Container { runtime: Some(runtime), id, monitor }))
}

/// The pod of the cgroup `part`: a slice that says all, or `podUID` below `kubepods`, which has pods of
/// this quality of service.
pub(super) fn pod(part: &[u8], kubepods: Option<Qos>) -> Option<Pod> {
    if let (Some(qos), Some(uid)) = (kubepods, part.strip_prefix(b"pod")) {
        return Some(Pod { uid: uid_of(uid)?, qos });
    }
    let name = str::from_utf8(part.strip_suffix(b".slice")?).ok()?;
    let (above, uid) = name.rsplit_once("-pod")?;
    // Before it can be the slice that all pods are put into, as kind does.
    let qos = match above.rsplit_once("kubepods")? {
        (before, _) if !(before.is_empty() || before.ends_with('-')) => return None,
        (_, "") => Qos::Guaranteed,
        (_, "-burstable") => Qos::Burstable,
        (_, "-besteffort") => Qos::BestEffort,
        _ => return None,
    };
    Some(Pod { uid: uid_of(uid.as_bytes())?, qos })
}

/// A pod's uid: a UUID, whose dashes have become underscores in a slice, or the hash of a static pod.
fn uid_of(uid: &[u8]) -> Option<String> {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    let is_uuid = uid.len() == 36
        && uid.iter().enumerate().all(|(at, byte)| match byte {
            b'-' | b'_' => DASHES.contains(&at),
            &digit => is_digit(digit) && !DASHES.contains(&at),
        });
    let is_hash = uid.len() == 32 && uid.iter().copied().all(is_digit);
    if !is_uuid && !is_hash {
        return None;
    }
    Some(uid.iter().map(|&byte| if byte == b'_' { '-' } else { char::from(byte) }).collect())
}

fn is_id(name: &[u8]) -> bool {
    name.len() == ID_DIGITS && name.iter().copied().all(is_digit)
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The systemd unit that the cgroup `part` is named after.
pub(super) fn unit(part: &[u8]) -> Option<&str> {
    let name = str::from_utf8(part).ok()?;
    // Put before what the kernel could take for a file of its own, or what begins with it.
    let name = name.strip_prefix('_').unwrap_or(name);
    let (stem, kind) = name.rsplit_once('.')?;
    let is_valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let fits = !stem.is_empty() && name.len() <= LONGEST_UNIT;
    (fits && UNITS.contains(&kind) && stem.chars().all(is_valid)).then_some(name)
}

/// The user of `user-UID.slice` or `user@UID.service`.
pub(super) fn user(unit: &str) -> Option<u32> {
    let slice = unit.strip_prefix("user-").and_then(|rest| rest.strip_suffix(".slice"));
    let service = unit.strip_prefix("user@").and_then(|rest| rest.strip_suffix(".service"));
    let uid = slice.or(service).filter(|uid| uid.bytes().all(|byte| byte.is_ascii_digit()))?;
    uid.parse().ok()
}

/// The bytes of a unit's name, in which systemd writes some as `\xNN` (systemd-escape(1)).
pub(super) fn unescape(unit: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), unit.as_bytes());
    while let [first, after @ ..] = rest {
        let hex = after.strip_prefix(b"x").and_then(|after| after.get(..2));
        let hex = hex.filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let byte = hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}
