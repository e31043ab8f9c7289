//! Who a pod's processes are and what they may do.

use serde_json::json;
use skeg_protocol::manifest::{Pod, Security};

use super::capabilities;
use crate::cursor::{Cursor, Fault, Fields};

const POD: Fields = Fields {
    read: &[
        "fsGroup",
        "fsGroupChangePolicy",
        "runAsGroup",
        "runAsNonRoot",
        "runAsUser",
        "seccompProfile",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "sysctls",
    ],
    ignored: &[],
    unsupported: &["appArmorProfile", "seLinuxChangePolicy", "seLinuxOptions", "windowsOptions"],
};
const CONTAINER: Fields = Fields {
    read: &[
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "readOnlyRootFilesystem",
        "capabilities",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "seccompProfile",
    ],
    ignored: &[],
    unsupported: &["appArmorProfile", "seLinuxOptions", "windowsOptions"],
};

/// Reads a pod's security context: what is the pod's goes into it, what its containers inherit is given back.
pub(super) fn of_pod(spec: &Cursor<'_>, pod: &mut Pod) -> Result<Security, Fault> {
    let Some(at) = spec.get("securityContext")? else { return Ok(Security::default()) };
    at.fields(&POD)?;
    at.only("fsGroupChangePolicy", &[json!("Always"), json!("OnRootMismatch")])?;
    at.only("supplementalGroupsPolicy", &[json!("Merge")])?;
    pod.fs_group = at.number("fsGroup")?;
    pod.supplemental_groups = at.each("supplementalGroups", |group| group.integer())?;
    pod.sysctls = at.each("sysctls", |sysctl| {
        sysctl.fields(&Fields { read: &["name", "value"], ignored: &[], unsupported: &[] })?;
        Ok((sysctl.need("name")?.text()?.to_owned(), sysctl.need("value")?.text()?.to_owned()))
    })?;
    Ok(Security {
        user: at.number("runAsUser")?,
        group: at.number("runAsGroup")?,
        run_as_non_root: at.flag("runAsNonRoot")?,
        seccomp_unconfined: unconfined(&at)?.unwrap_or_default(),
        ..Security::default()
    })
}

/// Reads a container's security context over what its pod says.
pub(super) fn of_container(container: &Cursor<'_>, shared: &Security) -> Result<Security, Fault> {
    let Some(at) = container.get("securityContext")? else { return Ok(shared.clone()) };
    at.fields(&CONTAINER)?;
    at.only("privileged", &[json!(false)])?;
    at.only("procMount", &[json!("Default")])?;
    at.only("allowPrivilegeEscalation", &[json!(false)])?;
    let (mut add_capabilities, mut drop_capabilities) = (Vec::new(), Vec::new());
    if let Some(list) = at.get("capabilities")? {
        list.fields(&Fields { read: &["add", "drop"], ignored: &[], unsupported: &[] })?;
        add_capabilities = list.each("add", capabilities::read)?;
        drop_capabilities = list.each("drop", capabilities::read)?;
    }
    Ok(Security {
        user: at.number("runAsUser")?.or(shared.user),
        group: at.number("runAsGroup")?.or(shared.group),
        run_as_non_root: match at.get("runAsNonRoot")? {
            Some(_) => at.flag("runAsNonRoot")?,
            None => shared.run_as_non_root,
        },
        read_only_root: at.flag("readOnlyRootFilesystem")?,
        add_capabilities,
        drop_capabilities,
        seccomp_unconfined: unconfined(&at)?.unwrap_or(shared.seccomp_unconfined),
        ..Security::default()
    })
}

fn unconfined(at: &Cursor<'_>) -> Result<Option<bool>, Fault> {
    let Some(profile) = at.get("seccompProfile")? else { return Ok(None) };
    profile.fields(&Fields { read: &["type"], ignored: &[], unsupported: &["localhostProfile"] })?;
    profile.only("type", &[json!("RuntimeDefault"), json!("Unconfined")])?;
    Ok(Some(profile.word("type")? == "Unconfined"))
}
