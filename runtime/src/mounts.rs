//! Mount options: the words of OCI and mount(8) into flags.
//!
//! Owns the table of options. Must not touch the filesystem.

use crate::sys::MountAttributes;

/// What a list of options means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// For mount(2).
    pub(crate) flags: u64,
    /// For mount_setattr(2) on the mount itself.
    pub(crate) attributes: MountAttributes,
    /// For mount_setattr(2) on the mount and all below.
    pub(crate) recursive_attributes: MountAttributes,
    /// A bind mount; recursive or not.
    pub(crate) bind: Option<bool>,
    /// `MS_PRIVATE` and the like; 0 if not said.
    pub(crate) propagation: u64,
    /// The rest, for the filesystem.
    pub(crate) data: Vec<String>,
}

/// Name, flag of mount(2), attribute of mount_setattr(2), and whether the word clears instead of setting.
const WORDS: &[(&str, u64, u64, bool)] = &[
    ("ro", libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY, false),
    ("rw", libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY, true),
    ("nosuid", libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID, false),
    ("suid", libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID, true),
    ("nodev", libc::MS_NODEV, libc::MOUNT_ATTR_NODEV, false),
    ("dev", libc::MS_NODEV, libc::MOUNT_ATTR_NODEV, true),
    ("noexec", libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC, false),
    ("exec", libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC, true),
    ("nodiratime", libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME, false),
    ("diratime", libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME, true),
    ("nosymfollow", 256, libc::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("symfollow", 256, libc::MOUNT_ATTR_NOSYMFOLLOW, true),
];

/// Words about the filesystem as a whole, which a bind mount does not change.
const FILESYSTEM_WORDS: &[(&str, u64, bool)] = &[
    ("sync", libc::MS_SYNCHRONOUS, false),
    ("async", libc::MS_SYNCHRONOUS, true),
    ("dirsync", libc::MS_DIRSYNC, false),
    ("silent", libc::MS_SILENT, false),
    ("loud", libc::MS_SILENT, true),
    ("lazytime", libc::MS_LAZYTIME, false),
    ("defaults", 0, false),
];

/// When access times are written: flag and attribute.
const ACCESS_TIME_WORDS: &[(&str, u64, u64)] = &[
    ("noatime", libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
    ("relatime", libc::MS_RELATIME, libc::MOUNT_ATTR_RELATIME),
    ("strictatime", libc::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    ("norelatime", 0, libc::MOUNT_ATTR_STRICTATIME),
    ("atime", 0, libc::MOUNT_ATTR_RELATIME),
];

/// How mounts spread between namespaces.
const PROPAGATION_WORDS: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("slave", libc::MS_SLAVE),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
];

impl Options {
    /// Reads the words in order; a later word wins over an earlier one.
    pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Options {
        let mut options = Options::default();
        for word in words {
            options.add(word);
        }
        options
    }

    fn add(&mut self, word: &str) {
        match word {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            _ if self.add_attribute(word) || self.add_filesystem_word(word) || self.add_propagation(word) => {}
            _ => self.data.push(word.into()),
        }
    }

    fn add_attribute(&mut self, word: &str) -> bool {
        if let Some((_, flag, attribute, clears)) = WORDS.iter().find(|(name, ..)| *name == word) {
            self.flags = if *clears { self.flags & !flag } else { self.flags | flag };
            self.attributes.change(*attribute, *clears);
            return true;
        }
        // `rro`, `rnosuid`, …: the same for everything below.
        let below = word.strip_prefix('r').and_then(|rest| WORDS.iter().find(|(name, ..)| *name == rest));
        if let Some((_, _, attribute, clears)) = below.filter(|_| word != "rw") {
            self.recursive_attributes.change(*attribute, *clears);
            return true;
        }
        let Some((_, flag, attribute)) = ACCESS_TIME_WORDS.iter().find(|(name, ..)| *name == word) else {
            return false;
        };
        self.flags |= flag;
        self.attributes.set = self.attributes.set & !libc::MOUNT_ATTR__ATIME | attribute;
        // The kernel wants the whole field cleared when any of its values is set.
        self.attributes.clear |= libc::MOUNT_ATTR__ATIME;
        true
    }

    fn add_filesystem_word(&mut self, word: &str) -> bool {
        let Some((_, flag, clears)) = FILESYSTEM_WORDS.iter().find(|(name, ..)| *name == word) else { return false };
        self.flags = if *clears { self.flags & !flag } else { self.flags | flag };
        true
    }

    fn add_propagation(&mut self, word: &str) -> bool {
        let found = PROPAGATION_WORDS.iter().find(|(name, _)| *name == word);
        if let Some((_, flags)) = found {
            self.propagation = *flags;
        }
        found.is_some()
    }
}

/// Every word that [`Options::parse`] takes out of the data, sorted.
pub(crate) fn option_names() -> Vec<String> {
    let below = WORDS.iter().map(|(name, ..)| format!("r{name}"));
    let flags = WORDS.iter().map(|(name, ..)| *name).chain(FILESYSTEM_WORDS.iter().map(|(name, ..)| *name));
    let others =
        ACCESS_TIME_WORDS.iter().map(|(name, ..)| *name).chain(PROPAGATION_WORDS.iter().map(|(name, _)| *name));
    let mut names: Vec<_> = flags.chain(others).chain(["bind", "rbind"]).map(String::from).chain(below).collect();
    names.sort();
    names
}

impl MountAttributes {
    fn change(&mut self, attribute: u64, clears: bool) {
        let (add, remove) = if clears { (&mut self.clear, &mut self.set) } else { (&mut self.set, &mut self.clear) };
        *add |= attribute;
        *remove &= !attribute;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Options {
        Options::parse(words.split(',').filter(|word| !word.is_empty()))
    }

    #[test]
    fn words_become_flags_and_the_rest_is_data() {
        let options = parse("nosuid,noexec,nodev,mode=755,size=64k,ro");
        assert_eq!(options.flags, libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV | libc::MS_RDONLY);
        assert_eq!(options.data, ["mode=755", "size=64k"]);
        assert_eq!(options.bind, None);
    }

    #[test]
    fn the_last_word_wins() {
        let options = parse("ro,rw,suid,nosuid");
        assert_eq!(options.flags, libc::MS_NOSUID);
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn recursive_words_reach_below() {
        let options = parse("rbind,rro,rslave,noatime");
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive_attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.propagation, libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_NOATIME);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR__ATIME);
        // The later of the two does not make a recursive bind flat again.
        assert_eq!(parse("rbind,bind").bind, Some(true));
    }
}
