//! What both versions check in the same way.
//!
//! Owns names that become parts of files and values. Must not know a version's files.

use super::CgroupError;
use crate::oci;

fn refused(limit: String, value: impl ToString, reason: impl Into<String>) -> CgroupError {
    CgroupError::Refused { limit, value: value.to_string(), reason: reason.into() }
}

/// The limit's place in the specification and its page size, such as `2MB`, which becomes part of a file's name.
pub(super) fn huge_page(index: usize, limit: &oci::LinuxHugepageLimit) -> Result<(String, &str), CgroupError> {
    let size = limit.page_size();
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    let name = format!("hugepageLimits[{index}]");
    match number {
        Some(number) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => Ok((name, size)),
        _ => Err(refused(format!("{name}.pageSize"), size, "a page size is a number and KB, MB or GB")),
    }
}

/// The limit's place in the specification and the line for `rdma.max`.
pub(super) fn rdma(device: &str, limits: &oci::LinuxRdma) -> Result<(String, String), CgroupError> {
    let name = format!("rdma[{device:?}]");
    check_device(&name, device)?;
    let part = |key, value: Option<u32>| value.map(|value| format!(" {key}={value}")).unwrap_or_default();
    let handles = part("hca_handle", limits.hca_handles());
    Ok((name, format!("{device}{handles}{}", part("hca_object", limits.hca_objects()))))
}

/// Refuses a device's name that would read as more than one word of a line.
pub(super) fn check_device(limit: &str, device: &str) -> Result<(), CgroupError> {
    if device.is_empty()
        || device.len() > 64
        || device.contains(|letter: char| letter.is_whitespace() || letter == '\0')
    {
        return Err(refused(limit.into(), device, "a device's name has 1 to 64 bytes and no blanks"));
    }
    Ok(())
}

/// Refuses a limit below what is in use, for `checkBeforeUpdate`.
pub(super) fn check_usage(limit: &str, value: i64, usage: Option<String>) -> Result<(), CgroupError> {
    let usage = usage.and_then(|text| text.trim().parse::<u64>().ok());
    match (u64::try_from(value), usage) {
        (Ok(bytes), Some(usage)) if bytes < usage => {
            Err(refused(limit.into(), value, format!("{usage} bytes are in use, and checkBeforeUpdate is set")))
        }
        _ => Ok(()),
    }
}
