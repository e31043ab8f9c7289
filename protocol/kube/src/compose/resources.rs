//! What a service may use at most and is sure to get.

use serde_json::Value;
use skeg_protocol::manifest::{BlockIo, Container, Ulimit};

use super::scalar::Scalar as _;
use crate::cursor::{Cursor, Fault, Fields};

/// CPU shares that stand for one CPU.
const SHARES: u64 = 1024;

pub(super) fn read(at: &Cursor<'_>, container: &mut Container) -> Result<(), Fault> {
    let (limits, requests) = (&mut container.limits, &mut container.requests);
    let size = |name| at.get(name)?.map(|field| field.size()).transpose();
    limits.memory_bytes = size("mem_limit")?;
    limits.shm_bytes = size("shm_size")?;
    requests.memory_bytes = size("mem_reservation")?;
    // -1 is as much as there is.
    if let Some(swap) = at.get("memswap_limit")?.filter(|field| field.scalar().is_ok_and(|text| text != "-1")) {
        limits.memory_swap_bytes = Some(swap.size()?);
    }
    limits.cpu_millis = at.get("cpus")?.map(|field| field.cpus()).transpose()?.filter(|cpus| *cpus > 0);
    if let Some(quota) = at.get("cpu_quota")? {
        let micros = |field: &Cursor<'_>| -> Result<u64, Fault> {
            field.whole().or_else(|_| Ok(u64::from(field.duration()?) * 1000))
        };
        let period = at.get("cpu_period")?.map(|field| micros(&field)).transpose()?.unwrap_or(100_000).max(1);
        let millis = (micros(&quota)?.saturating_mul(1000)).div_ceil(period);
        limits.cpu_millis = Some(u32::try_from(millis).map_err(|_| quota.invalid("is out of range"))?);
    }
    if let Some(shares) = at.get("cpu_shares")? {
        let number: u32 = shares.whole()?;
        let millis = (u64::from(number) * 1000).div_ceil(SHARES);
        requests.cpu_millis = u32::try_from(millis).ok();
    }
    limits.cpuset = at.get("cpuset")?.map(|field| field.scalar()).transpose()?;
    limits.pids = pids(at, "pids_limit")?;
    limits.oom_score_adj = at.get("oom_score_adj")?.map(|field| field.whole()).transpose()?;
    for (name, value) in at.get("ulimits")?.map(|map| map.object()).transpose()?.into_iter().flatten() {
        let value = Cursor::new(value, &format!("{}.ulimits.{name}", at.path()));
        limits.ulimits.push(ulimit(name, &value)?);
    }
    limits.block_io = block_io(at)?;
    deployed(at, container)
}

/// -1 and 0 are no bound.
fn pids(at: &Cursor<'_>, name: &str) -> Result<Option<u32>, Fault> {
    let Some(field) = at.get(name)? else { return Ok(None) };
    match field.whole::<i64>()? {
        -1 | 0 => Ok(None),
        number => u32::try_from(number).map(Some).map_err(|_| field.invalid("is out of range")),
    }
}

fn deployed(at: &Cursor<'_>, container: &mut Container) -> Result<(), Fault> {
    let Some(deploy) = at.get("deploy")? else { return Ok(()) };
    let Some(resources) = deploy.get("resources")? else { return Ok(()) };
    resources.fields(&Fields { read: &["limits", "reservations"], ignored: &[], unsupported: &[] })?;
    let (limits, requests) = (&mut container.limits, &mut container.requests);
    if let Some(at) = resources.get("limits")? {
        at.fields(&Fields { read: &["cpus", "memory", "pids"], ignored: &[], unsupported: &[] })?;
        limits.memory_bytes = at.get("memory")?.map(|field| field.size()).transpose()?.or(limits.memory_bytes);
        limits.cpu_millis = at.get("cpus")?.map(|field| field.cpus()).transpose()?.or(limits.cpu_millis);
        limits.pids = pids(&at, "pids")?.or(limits.pids);
    }
    if let Some(at) = resources.get("reservations")? {
        at.fields(&Fields {
            read: &["cpus", "memory"],
            ignored: &[],
            unsupported: &["devices", "generic_resources", "pids"],
        })?;
        requests.memory_bytes = at.get("memory")?.map(|field| field.size()).transpose()?.or(requests.memory_bytes);
        requests.cpu_millis = at.get("cpus")?.map(|field| field.cpus()).transpose()?.or(requests.cpu_millis);
    }
    Ok(())
}

fn ulimit(name: &str, at: &Cursor<'_>) -> Result<Ulimit, Fault> {
    let bounded = heapless::String::try_from(name).map_err(|_| at.wrong("is no resource limit (getrlimit(2))"))?;
    let number = |at: &Cursor<'_>| match at.whole::<i64>()? {
        -1 => Ok(u64::MAX),
        number => u64::try_from(number).map_err(|_| at.invalid("is out of range")),
    };
    let (soft, hard) = match at.value() {
        Value::Object(_) => {
            at.fields(&Fields { read: &["soft", "hard"], ignored: &[], unsupported: &[] })?;
            (number(&at.need("soft")?)?, number(&at.need("hard")?)?)
        }
        _ => (number(at)?, number(at)?),
    };
    if soft > hard {
        return Err(at.invalid("must not have a soft limit over the hard one"));
    }
    Ok(Ulimit { name: bounded, soft, hard })
}

fn block_io(at: &Cursor<'_>) -> Result<Vec<BlockIo>, Fault> {
    let mut out: Vec<BlockIo> = Vec::new();
    let Some(config) = at.get("blkio_config")? else { return Ok(out) };
    config.fields(&Fields {
        read: &["device_read_bps", "device_read_iops", "device_write_bps", "device_write_iops"],
        ignored: &[],
        unsupported: &["weight", "weight_device"],
    })?;
    for name in ["device_read_bps", "device_read_iops", "device_write_bps", "device_write_iops"] {
        for item in config.items(name)? {
            item.fields(&Fields { read: &["path", "rate"], ignored: &[], unsupported: &[] })?;
            let (path, rate) = (item.need("path")?.text()?, item.need("rate")?.size()?);
            let index = out.iter().position(|known| known.device == path).unwrap_or_else(|| {
                out.push(BlockIo { device: path.to_owned(), ..BlockIo::default() });
                out.len() - 1
            });
            let one = &mut out[index];
            *match name {
                "device_read_bps" => &mut one.read_bytes,
                "device_read_iops" => &mut one.read_operations,
                "device_write_bps" => &mut one.write_bytes,
                _ => &mut one.write_operations,
            } = Some(rate);
        }
    }
    Ok(out)
}
