//! Whose a cgroup is: from its path to what people call it, a systemd unit, a container, a pod.
//!
//! Only names that one program gives, in the form in which it gives them, are recognised; of any other
//! cgroup nothing is known but its path. Names are anyone's choice: whoever may make cgroups may give
//! one the name of a container that is not there.

mod parts;

use std::fmt::{self, Display, Formatter};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use crate::text::{Lossless, Printable};

/// Whose a cgroup is. At least one of `unit`, `container` and `pod` is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The systemd unit, by the name that systemctl takes: of the host, or of the container where there
    /// is one. A container's own scope is not among them.
    pub unit: Option<&'a str>,
    /// The user whose systemd has the unit, or whose session it is.
    pub user: Option<u32>,
    /// The container, of several within each other the innermost.
    pub container: Option<Container<'a>>,
    /// The Kubernetes pod.
    pub pod: Option<Pod>,
}

/// A container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container<'a> {
    /// What runs it, where the path says so.
    pub runtime: Option<Runtime>,
    /// Its whole id, 64 hex digits; of LXC its name, in any bytes.
    pub id: &'a [u8],
    /// Whether this is not the container itself, but the process that watches over it.
    pub monitor: bool,
}

/// What runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd, by itself or for Kubernetes.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// LXC, LXD and Incus.
    Lxc,
}

/// A Kubernetes pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, with dashes; of a static pod 32 hex digits without.
    pub uid: String,
    /// Its quality of service.
    pub qos: Qos,
}

/// A pod's quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Qos {
    /// Its requests are its limits.
    Guaranteed,
    /// It may use more than it requested.
    Burstable,
    /// It requested nothing.
    BestEffort,
}

/// Most characters of an owner's short form.
pub const WIDTH: usize = 52;

/// Digits of a container's id that are shown, as many as Docker shows.
const ID_DIGITS: usize = 12;

/// Digits of a pod's uid that are shown: those up to its first dash.
const UID_DIGITS: usize = 8;

impl<'a> Owner<'a> {
    /// Whose the cgroup at `path` is, which is a path below the root of its hierarchy.
    #[must_use]
    pub fn of(path: &'a [u8]) -> Option<Self> {
        let mut owner = Self::default();
        // Some programs have all of the path in one name.
        let mut above = Above::default();
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            owner.enter(part, above);
            above = above.then(part);
        }
        (owner.unit.is_some() || owner.container.is_some() || owner.pod.is_some()).then_some(owner)
    }

    /// Goes down into the cgroup `part`.
    fn enter(&mut self, part: &'a [u8], above: Above) {
        if let Some((pod, container)) = parts::colon_separated(part) {
            self.enter_container(container);
            self.pod = pod.or(self.pod.take());
        } else if let Some(pod) = parts::pod(part, above.kubepods) {
            // What is around it is not the pod's, and it is in nothing that a pod before it was.
            *self = Self { pod: Some(pod), ..Self::default() };
        } else if let Some(container) = parts::container(part, above.parent(self)) {
            self.enter_container(container);
        } else if let Some(unit) = parts::unit(part) {
            self.unit = Some(unit);
            self.user = parts::user(unit).or(self.user);
        }
    }

    fn enter_container(&mut self, container: Container<'a>) {
        *self = Self { container: Some(container), pod: self.pod.take(), ..Self::default() };
    }
}

/// What is said by the names of the cgroups above one, the nearest first.
#[derive(Clone, Copy, Debug, Default)]
struct Above {
    /// The quality of service of the pods that are right below.
    kubepods: Option<Qos>,
    /// It is named as the parent of containers that have an id for a name.
    containers: Option<Parent>,
    /// It is `/ecs`, of whose children each is the parent of containers.
    ecs: bool,
}

/// Where a name is a container's id or name and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    Docker,
    /// Of an unknown runtime.
    Any,
    Lxc,
    LxcMonitor,
}

impl Above {
    /// Below `part` as well.
    fn then(self, part: &[u8]) -> Self {
        let kubepods = match (part, self.kubepods) {
            (b"kubepods", _) => Some(Qos::Guaranteed),
            (b"burstable", Some(Qos::Guaranteed)) => Some(Qos::Burstable),
            (b"besteffort", Some(Qos::Guaranteed)) => Some(Qos::BestEffort),
            _ => None,
        };
        let containers = match part {
            b"docker" => Some(Parent::Docker),
            b"lxc" | b"lxc.payload" => Some(Parent::Lxc),
            b"lxc.monitor" => Some(Parent::LxcMonitor),
            _ if self.ecs => Some(Parent::Any),
            _ => None,
        };
        Self { kubepods, containers, ecs: part == b"ecs" }
    }

    /// What a cgroup below it, and in `owner`, is when it has an id for a name.
    fn parent(self, owner: &Owner<'_>) -> Option<Parent> {
        let in_pod = owner.pod.is_some() && owner.container.is_none();
        self.containers.or(in_pod.then_some(Parent::Any))
    }
}

impl Runtime {
    /// Its name, lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Lxc => "lxc",
        }
    }
}

impl Qos {
    /// Its name, lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed",
            Self::Burstable => "burstable",
            Self::BestEffort => "besteffort",
        }
    }
}

/// The short form, for people: `nginx.service`, `docker:1a2b3c4d5e6f`,
/// `pod:burstable/6ba7b810/containerd:1a2b3c4d5e6f`, `user:1000/app.slice`. Of what is longer than
/// [`WIDTH`] the middle is left out. Honours the formatter's width.
impl Display for Owner<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut shown = Vec::new();
        if let Some(Pod { uid, qos }) = &self.pod {
            let uid = uid.get(..UID_DIGITS).unwrap_or(uid);
            shown.push(format!("pod:{}/{uid}", qos.name()));
        }
        if let Some(Container { runtime, id, monitor }) = self.container {
            let id =
                if runtime == Some(Runtime::Lxc) { id } else { &id[..ID_DIGITS.min(id.len())] };
            let runtime = runtime.map_or("container", Runtime::name);
            let monitor = if monitor { "-monitor" } else { "" };
            shown.push(format!("{runtime}{monitor}:{}", Printable(id)));
        }
        if let (Some(user), None) = (self.user, self.container) {
            shown.push(format!("user:{user}"));
        }
        if let Some(unit) = self.unit {
            shown.push(Printable(&parts::unescape(unit)).to_string());
        }
        let shown = shorten(&shown.join("/"));
        Printable(shown.as_bytes()).fmt(f)
    }
}

/// Leaves the middle of what is longer than [`WIDTH`] out: the begin says whose it is, and the end what.
fn shorten(text: &str) -> String {
    const GAP: &str = "...";
    let count = text.chars().count();
    if count <= WIDTH {
        return text.to_owned();
    }
    let kept = WIDTH - GAP.len();
    let (head, tail) = (kept.div_ceil(2), kept / 2);
    let begin = text.chars().take(head);
    begin.chain(GAP.chars()).chain(text.chars().skip(count - tail)).collect()
}

/// All keys are always there: `name`, the short form, and the parts in full.
impl Serialize for Owner<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { unit, user, container, pod } = self;
        let mut object = serializer.serialize_struct("Owner", 8)?;
        object.serialize_field("name", &self.to_string())?;
        object.serialize_field("unit", unit)?;
        object.serialize_field("user", user)?;
        let runtime = container.and_then(|container| container.runtime);
        object.serialize_field("runtime", &runtime)?;
        let id = container.as_ref().map(|container| Lossless(container.id).text());
        object.serialize_field("container", &id)?;
        object.serialize_field("monitor", &container.is_some_and(|container| container.monitor))?;
        object.serialize_field("pod", &pod.as_ref().map(|pod| pod.uid.as_str()))?;
        object.serialize_field("qos", &pod.as_ref().map(|pod| pod.qos))?;
        object.end()
    }
}

#[cfg(test)]
mod tests;
