//! What a container may use at most and is sure to get. Two kinds of resources are skeg's own: `skeg.dev/pids` bounds
//! processes and threads, and `device.skeg.dev/…` in the limits gives a device of the host by its path.

use skeg_protocol::manifest::{Device, Limits, Requests};

use crate::cursor::{Cursor, Fault, Fields};
use crate::quantity;

/// Resource name of the bound on processes and threads.
const PIDS: &str = "skeg.dev/pids";
/// Before the path of a device below `/dev`, where `/` is written as `_`: `device.skeg.dev/snd_controlC0: 1`. A resource's
/// name must not hold a second slash.
const DEVICE: &str = "device.skeg.dev/";
/// Before the size of huge pages.
const HUGE_PAGES: &str = "hugepages-";

/// Everything under a container's `resources`.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) limits: Limits,
    pub(super) requests: Requests,
    pub(super) devices: Vec<Device>,
}

pub(super) fn read(at: &Cursor<'_>) -> Result<Resources, Fault> {
    let mut out = Resources::default();
    let Some(resources) = at.get("resources")? else { return Ok(out) };
    resources.fields(&Fields { read: &["limits", "requests"], ignored: &[], unsupported: &["claims"] })?;
    for (name, request) in resources.entries("requests")? {
        match name {
            "memory" => out.requests.memory_bytes = Some(units(&request)?),
            "cpu" => out.requests.cpu_millis = Some(cpu_millis(&request)?),
            "ephemeral-storage" => out.requests.ephemeral_storage_bytes = Some(units(&request)?),
            // What must be whole has the request that its limit is.
            _ => drop(units(&request)?),
        }
    }
    for (name, limit) in resources.entries("limits")? {
        let positive = |number: u64| if number == 0 { Err(limit.invalid("must be more than 0")) } else { Ok(number) };
        match name {
            "memory" => out.limits.memory_bytes = Some(positive(units(&limit)?)?),
            "cpu" => {
                let millis = cpu_millis(&limit)?;
                positive(millis.into())?;
                out.limits.cpu_millis = Some(millis);
            }
            "ephemeral-storage" => out.limits.ephemeral_storage_bytes = Some(positive(units(&limit)?)?),
            PIDS => {
                let count = positive(units(&limit)?)?;
                out.limits.pids = Some(count.try_into().map_err(|_| limit.invalid("is out of range"))?);
            }
            _ => match (name.strip_prefix(HUGE_PAGES), name.strip_prefix(DEVICE)) {
                (Some(size), _) => {
                    let size = quantity::units(size).filter(|size| size.is_power_of_two());
                    let size = size.ok_or_else(|| limit.wrong("must name a size such as hugepages-2Mi"))?;
                    out.limits.huge_pages.push((size, units(&limit)?));
                }
                (_, Some(path)) if !path.is_empty() => {
                    if units(&limit)? != 1 {
                        return Err(limit.invalid("must be 1: a device is given or not"));
                    }
                    let path = format!("/dev/{}", path.replace('_', "/"));
                    let container_path = path.clone();
                    out.devices.push(Device { path, container_path, read: true, write: true, mknod: false });
                }
                _ => return Err(limit.unsupported()),
            },
        }
    }
    fill_requests(&resources, &mut out)?;
    Ok(out)
}

/// A request that is left out is the limit; one beyond its limit is refused.
fn fill_requests(at: &Cursor<'_>, out: &mut Resources) -> Result<(), Fault> {
    let Resources { limits, requests, .. } = out;
    requests.memory_bytes = requests.memory_bytes.or(limits.memory_bytes);
    requests.cpu_millis = requests.cpu_millis.or(limits.cpu_millis);
    requests.ephemeral_storage_bytes = requests.ephemeral_storage_bytes.or(limits.ephemeral_storage_bytes);
    let beyond = |request: Option<u64>, limit: Option<u64>| limit.is_some_and(|limit| request > Some(limit));
    for (name, request, limit) in [
        ("memory", requests.memory_bytes, limits.memory_bytes),
        ("cpu", requests.cpu_millis.map(u64::from), limits.cpu_millis.map(u64::from)),
        ("ephemeral-storage", requests.ephemeral_storage_bytes, limits.ephemeral_storage_bytes),
    ] {
        if beyond(request, limit) {
            return Err(at.wrong(format!("the request of {name} must not be more than its limit")));
        }
    }
    Ok(())
}

fn bad(at: &Cursor<'_>) -> Fault {
    at.invalid("must be a quantity such as 64Mi or 500m")
}

fn units(at: &Cursor<'_>) -> Result<u64, Fault> {
    quantity::units(&at.quantity_text()?).ok_or_else(|| bad(at))
}

fn cpu_millis(at: &Cursor<'_>) -> Result<u32, Fault> {
    let millis = quantity::millis(&at.quantity_text()?).ok_or_else(|| bad(at))?;
    u32::try_from(millis).map_err(|_| bad(at))
}
