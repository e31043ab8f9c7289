//! Reads the `.modinfo` section of a kernel module: what it depends on.
//!
//! Debian's kernel packages hold no `modules.dep` (depmod writes it on installation), so that the
//! modules themselves are the only source. ELF as in elf(5), 64-bit little-endian only; every offset
//! is checked, for the file came over a network.

/// Why a module could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModinfoError {
    /// Not an ELF file of 64-bit little-endian kind.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// Compressed by xz, which is not supported.
    #[error(
        "compressed by xz, which is not supported: unpack it with `xz -d` first, or take a kernel with plain .ko files"
    )]
    Xz,
    /// An offset points outside of the file.
    #[error("cut short or damaged: a section lies outside of the file")]
    Damaged,
    /// It was built for another processor.
    #[error("built for another processor (ELF machine {0})")]
    Machine(u16),
}

/// Returns the names of the modules that the module in `bytes` depends on, as it spells them.
pub(crate) fn dependencies(bytes: &[u8], machine: u16) -> Result<Vec<String>, ModinfoError> {
    if bytes.starts_with(b"\xfd7zXZ\0") {
        return Err(ModinfoError::Xz);
    }
    // Class 2 is 64-bit, data 1 is little-endian.
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(ModinfoError::NotElf);
    }
    let found = u16_at(bytes, 0x12)?;
    if found != machine {
        return Err(ModinfoError::Machine(found));
    }
    let table = u64_at(bytes, 0x28)?;
    let entry_size = usize::from(u16_at(bytes, 0x3a)?);
    let count = usize::from(u16_at(bytes, 0x3c)?);
    let names_index = usize::from(u16_at(bytes, 0x3e)?);
    let header = |index: usize| {
        let start = index.checked_mul(entry_size).and_then(|offset| table.checked_add(offset));
        start.ok_or(ModinfoError::Damaged)
    };
    let names = section(bytes, header(names_index)?)?;
    for index in 0..count {
        let start = header(index)?;
        let name = names.get(u32_at(bytes, start)? as usize..).ok_or(ModinfoError::Damaged)?;
        if name.starts_with(b".modinfo\0") {
            return Ok(parse(section(bytes, start)?));
        }
    }
    Ok(Vec::new())
}

/// Finds `depends=a,b` among the NUL-separated `key=value` strings.
fn parse(modinfo: &[u8]) -> Vec<String> {
    let lists = modinfo.split(|byte| *byte == 0).filter_map(|entry| entry.strip_prefix(b"depends="));
    let names = lists.flat_map(|list| list.split(|byte| *byte == b','));
    names.filter(|name| !name.is_empty()).map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// Returns the contents of the section whose header starts at `header`.
fn section(bytes: &[u8], header: usize) -> Result<&[u8], ModinfoError> {
    let field = |offset: usize| u64_at(bytes, header.checked_add(offset).ok_or(ModinfoError::Damaged)?);
    let (start, size) = (field(0x18)?, field(0x20)?);
    let end = start.checked_add(size).ok_or(ModinfoError::Damaged)?;
    bytes.get(start..end).ok_or(ModinfoError::Damaged)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ModinfoError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or(ModinfoError::Damaged)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ModinfoError> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ModinfoError> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<usize, ModinfoError> {
    usize::try_from(u64::from_le_bytes(array(bytes, at)?)).map_err(|_| ModinfoError::Damaged)
}

/// A module file that holds nothing but its `.modinfo`, for tests.
#[cfg(test)]
pub(crate) fn sample(machine: u16, depends: &str) -> Vec<u8> {
    let modinfo = format!("license=GPL\0depends={depends}\0name=x\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[0x12..0x14].copy_from_slice(&machine.to_le_bytes());
    let modinfo_at = file.len();
    file.extend_from_slice(modinfo.as_bytes());
    let names_at = file.len();
    file.extend_from_slice(names);
    let table = file.len() as u64;
    for (name, start, size) in [(0, 0, 0), (1, modinfo_at, modinfo.len()), (10, names_at, names.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&u32::to_le_bytes(name));
        header[0x18..0x20].copy_from_slice(&(start as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend_from_slice(&header);
    }
    file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    file[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
    file[0x3e..0x40].copy_from_slice(&2u16.to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dependencies() {
        assert_eq!(dependencies(&sample(62, "virtio_ring,virtio"), 62).unwrap(), ["virtio_ring", "virtio"]);
        assert_eq!(dependencies(&sample(62, ""), 62).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn refuses_what_is_not_a_module_for_this_processor() {
        assert_eq!(dependencies(&sample(62, ""), 183), Err(ModinfoError::Machine(62)));
        assert_eq!(dependencies(b"#!/bin/sh", 62), Err(ModinfoError::NotElf));
        assert_eq!(dependencies(b"\xfd7zXZ\0\0", 62), Err(ModinfoError::Xz));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_survived() {
        let good = sample(62, "virtio");
        // Of the last section header, that of the names, the fields behind the size are not looked at.
        for length in 0..good.len() - (64 - 0x28) {
            assert!(dependencies(&good[..length], 62).is_err(), "cut at {length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _either = dependencies(&bad, 62);
        }
    }
}
