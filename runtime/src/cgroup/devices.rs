//! Which devices a container may use: `linux.resources.devices`.
//!
//! Owns the rules' meaning and their two forms, lines for version 1 and a BPF program for version 2. Must not load or
//! write either.

use super::CgroupError;
use crate::oci;
use std::fmt;

/// Rights of a rule, with the numbers that the kernel's BPF context uses (`BPF_DEVCG_ACC_*`).
const MAKE: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MAKE | READ | WRITE;

/// Kinds of devices, with the numbers of the BPF context (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block = 1,
    Character = 2,
}

/// One rule. `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    rights: u8,
}

impl fmt::Display for Rule {
    /// Writes it as version 1's `devices.allow` and `devices.deny` take it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => 'a',
            Some(Kind::Block) => 'b',
            Some(Kind::Character) => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
        write!(formatter, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let rights = [(READ, "r"), (WRITE, "w"), (MAKE, "m")];
        rights.iter().filter(|(right, _)| self.rights & right != 0).try_for_each(|(_, name)| formatter.write_str(name))
    }
}

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, rights: u8) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, rights }
}

/// What every container may use: config-linux.md, "Default Devices", and making nodes of any, which need a rule to be
/// opened. The same as runc's.
const DEFAULT: [Rule; 10] = [
    allow(Kind::Character, None, None, MAKE),
    allow(Kind::Block, None, None, MAKE),
    // null, zero, full, random, urandom.
    allow(Kind::Character, Some(1), Some(3), ALL),
    allow(Kind::Character, Some(1), Some(5), ALL),
    allow(Kind::Character, Some(1), Some(7), ALL),
    allow(Kind::Character, Some(1), Some(8), ALL),
    allow(Kind::Character, Some(1), Some(9), ALL),
    // tty and ptmx, and the terminals behind it.
    allow(Kind::Character, Some(5), Some(0), ALL),
    allow(Kind::Character, Some(5), Some(2), ALL),
    allow(Kind::Character, Some(136), None, ALL),
];

/// Where everybody starts: with nothing.
const DENY_ALL: Rule = Rule { allow: false, kind: None, major: None, minor: None, rights: ALL };

/// Rules in force for a specification: nothing, then what it says in its order, then the default devices.
///
/// # Errors
/// [`CgroupError::Refused`] for a kind, number or right that is none.
pub(crate) fn rules(devices: &[oci::LinuxDeviceCgroup]) -> Result<Vec<Rule>, CgroupError> {
    let mut rules = vec![DENY_ALL];
    for (index, device) in devices.iter().enumerate() {
        add(&mut rules, index, device)?;
    }
    // A rule for everything hides all before it, and to everything there is nothing to add.
    if let Some(last) = rules.iter().rposition(Rule::is_total) {
        rules.drain(..last);
    }
    if rules.first().is_some_and(|first| !first.allow) {
        rules.extend(DEFAULT);
    }
    Ok(rules)
}

fn add(rules: &mut Vec<Rule>, index: usize, device: &oci::LinuxDeviceCgroup) -> Result<(), CgroupError> {
    let refused = |reason: &str| CgroupError::Refused {
        limit: format!("devices[{index}]"),
        value: device.to_string(),
        reason: reason.into(),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| refused("device numbers are 0 to 4294967295")),
    };
    let mut rights = 0;
    let access = device.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    for letter in access.chars() {
        rights |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MAKE,
            _ => return Err(refused("access is made of r, w and m")),
        };
    }
    let (major, minor) = (number(device.major())?, number(device.minor())?);
    let kind = match device.typ() {
        None | Some(oci::LinuxDeviceType::A) => None,
        Some(oci::LinuxDeviceType::B) => Some(Kind::Block),
        Some(oci::LinuxDeviceType::C | oci::LinuxDeviceType::U) => Some(Kind::Character),
        Some(oci::LinuxDeviceType::P) => return Err(refused("pipes are not controlled; type is a, b, c or u")),
    };
    let rule = Rule { allow: device.allow(), kind, major, minor, rights };
    if rule.kind.is_some() || rule.is_total() {
        rules.push(rule);
    } else {
        // Version 1 reads `a` as everything, whatever follows: said of both kinds it means what it says.
        rules.extend([Kind::Block, Kind::Character].map(|kind| Rule { kind: Some(kind), ..rule }));
    }
    Ok(())
}

impl Rule {
    /// Tells whether it speaks of every device and right.
    fn is_total(&self) -> bool {
        Rule { allow: false, ..*self } == DENY_ALL
    }

    /// The file of version 1 that takes it.
    pub(super) fn file(&self) -> &'static str {
        if self.allow { "devices.allow" } else { "devices.deny" }
    }

    /// Tells whether some use of some device is spoken of by both.
    fn meets(&self, other: &Rule) -> bool {
        let both = |one: Option<u32>, two: Option<u32>| one.is_none() || two.is_none() || one == two;
        let kinds = self.kind.is_none() || other.kind.is_none() || self.kind == other.kind;
        kinds && both(self.major, other.major) && both(self.minor, other.minor) && self.rights & other.rights != 0
    }
}

/// Refuses rules that version 1 would take and not keep: it drops a rule only if it is given the very same numbers, so
/// an exception from a wider rule is lost without a word.
///
/// # Errors
/// [`CgroupError::NoEqual`] names the rule.
pub(super) fn check_version_one(rules: &[Rule]) -> Result<(), CgroupError> {
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| !rule.is_total()) {
        let before = &rules[..index];
        let default = before.iter().rev().find(|rule| rule.is_total()).is_some_and(|rule| rule.allow);
        let same = |other: &Rule| (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor);
        let lost = |other: &&Rule| other.allow != rule.allow && !other.is_total() && other.meets(rule) && !same(other);
        if rule.allow == default
            && let Some(wider) = before.iter().find(lost)
        {
            return Err(CgroupError::NoEqual {
                limit: format!("devices ({} after {} {wider})", rule.file(), wider.file()),
                value: rule.to_string(),
                reason: "version 1 makes no exception from a rule that is not the very same",
            });
        }
    }
    Ok(())
}

/// One BPF instruction, `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    /// The destination in the low half, the source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Builds the program for `BPF_PROG_TYPE_CGROUP_DEVICE` that gives 1 for a use that the rules allow and 0 for another;
/// nothing if they allow everything. The last rule that speaks of a device and a right decides on that right, and a use
/// is allowed if each right that it needs is.
///
/// Registers: 2 the kind, 3 the rights that are still open, 4 the major and 5 the minor number, 6 for work.
pub(crate) fn program(rules: &[Rule]) -> Option<Vec<Instruction>> {
    if rules.last().is_some_and(|rule| rule.allow && rule.is_total()) {
        return None;
    }
    // struct bpf_cgroup_dev_ctx: access_type (rights << 16 | kind), major, minor, 32 bits each.
    let mut program =
        vec![load(2, 0), copy(3, 2), operate(AND, 2, 0xffff), operate(SHIFT_RIGHT, 3, 16), load(4, 4), load(5, 8)];
    for rule in rules.iter().rev() {
        let start = program.len();
        if let Some(kind) = rule.kind {
            program.push(jump(JUMP_NOT_EQUAL, 2, kind as u32));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            program.extend(number.map(|number| jump(JUMP_NOT_EQUAL, register, number)));
        }
        let tests = program.len();
        let last = if rule.allow {
            // These rights are settled; nothing left open is a yes.
            program.push(operate(AND, 3, u32::from(ALL & !rule.rights)));
            jump(JUMP_NOT_EQUAL, 3, 0)
        } else {
            // One of these rights still open is a no.
            program.extend([copy(6, 3), operate(AND, 6, rule.rights.into())]);
            jump(JUMP_EQUAL, 6, 0)
        };
        program.extend([last, operate(MOVE, 0, rule.allow.into()), EXIT]);
        let end = program.len();
        // A test that fails goes on behind the rule; the last one skips its two instructions.
        for index in (start..tests).chain([end - 3]) {
            program[index].offset = (end - index - 1) as i16;
        }
    }
    program.extend([operate(MOVE, 0, 0), EXIT]);
    Some(program)
}

// Opcodes of linux/bpf.h. Arithmetic and jumps are of 32 bits: device numbers compare as what they are.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

/// Loads 32 bits of the context, whose address is in register 1.
const fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: register | 1 << 4, offset, immediate: 0 }
}

const fn copy(register: u8, from: u8) -> Instruction {
    Instruction { code: 0xbc, registers: register | from << 4, offset: 0, immediate: 0 }
}

const fn operate(code: u8, register: u8, value: u32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate: value.cast_signed() }
}

const fn jump(code: u8, register: u8, value: u32) -> Instruction {
    operate(code, register, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules_of(json: serde_json::Value) -> Vec<Rule> {
        rules(&serde_json::from_value::<Vec<_>>(json).unwrap()).unwrap()
    }

    /// Walks a program as the kernel does.
    fn answer(program: &[Instruction], kind: Kind, rights: u8, major: u32, minor: u32) -> u32 {
        let context = [u32::from(rights) << 16 | kind as u32, major, minor];
        let (mut registers, mut at) = ([0_u32; 7], 0_usize);
        loop {
            let instruction = program[at];
            let (to, from) = (usize::from(instruction.registers & 15), usize::from(instruction.registers >> 4));
            let value = instruction.immediate.cast_unsigned();
            at += 1;
            let skip = usize::try_from(instruction.offset).unwrap();
            match instruction.code {
                0x61 => registers[to] = context[skip / 4],
                0xbc => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                JUMP_EQUAL if registers[to] == value => at += skip,
                JUMP_NOT_EQUAL if registers[to] != value => at += skip,
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                0x95 => return registers[0],
                code => panic!("{code:x}"),
            }
        }
    }

    #[test]
    fn default_devices_are_allowed_and_others_are_not() {
        let program = program(&rules_of(json!([]))).unwrap();
        let character = |rights, major, minor| answer(&program, Kind::Character, rights, major, minor);
        assert_eq!([character(ALL, 1, 3), character(READ, 136, 77), character(MAKE, 200, 1)], [1, 1, 1]);
        assert_eq!([character(READ, 1, 1), character(READ | MAKE, 10, 200), character(WRITE, 137, 0)], [0, 0, 0]);
        assert_eq!([MAKE, READ, WRITE].map(|rights| answer(&program, Kind::Block, rights, 8, 0)), [1, 0, 0]);
    }

    #[test]
    fn the_last_rule_that_speaks_of_a_right_decides_on_it() {
        let program = program(&rules_of(json!([
            {"allow": true, "type": "b", "major": 8, "access": "rw"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
            {"allow": true, "type": "c", "major": 4, "minor": 1, "access": "r"},
            {"allow": true, "type": "c", "major": 4, "minor": 1, "access": "w"},
            {"allow": true, "type": "b", "major": 4_294_967_295_u32, "minor": 0, "access": "r"},
        ])))
        .unwrap();
        let block = |rights, minor| answer(&program, Kind::Block, rights, 8, minor);
        assert_eq!([block(READ | WRITE, 0), block(READ, 1), block(WRITE, 1), block(READ | WRITE, 1)], [1, 1, 0, 0]);
        assert_eq!(answer(&program, Kind::Character, READ | WRITE, 4, 1), 1, "two rules together");
        assert_eq!(answer(&program, Kind::Character, READ, 4, 2), 0);
        assert_eq!(answer(&program, Kind::Block, READ, u32::MAX, 0), 1);
    }

    #[test]
    fn everything_allowed_needs_no_program() {
        assert_eq!(program(&rules_of(json!([{"allow": true, "access": "rwm"}]))), None);
        assert_eq!(program(&rules_of(json!([{"allow": false}, {"allow": true, "type": "a"}]))), None);
        let rules = rules_of(json!([{"allow": true}, {"allow": false, "type": "c", "major": 1, "minor": 3}]));
        let program = program(&rules).unwrap();
        assert_eq!([1, 2].map(|major| answer(&program, Kind::Character, READ, major, 3)), [0, 1]);
    }

    #[test]
    fn rules_read_as_version_one_takes_them() {
        let text = |json| {
            let rules = rules_of(json);
            let line = |rule: &Rule| format!("{} {rule}", rule.file().trim_start_matches("devices."));
            rules[..rules.len() - DEFAULT.len()].iter().map(line).collect::<Vec<_>>().join("; ")
        };
        let all = "deny a *:* rwm";
        assert_eq!(text(json!([{"allow": false, "access": "rwm"}])), all);
        let one = json!([{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]);
        assert_eq!(text(one), format!("{all}; allow c 10:229 rwm"));
        let both = json!([{"allow": true, "type": "a", "major": 8, "minor": -1, "access": "r"}]);
        assert_eq!(text(both), format!("{all}; allow b 8:* r; allow c 8:* r"));
        for wrong in [json!({"access": "x"}), json!({"major": -2}), json!({"minor": 1_u64 << 32}), json!({"type": "p"})]
        {
            let device: oci::LinuxDeviceCgroup = serde_json::from_value(wrong.clone()).unwrap();
            assert!(matches!(rules(&[device]), Err(CgroupError::Refused { .. })), "{wrong}");
        }
    }

    #[test]
    fn an_exception_that_version_one_would_lose_is_refused() {
        let check = |json| check_version_one(&rules_of(json));
        check(json!([])).unwrap();
        let wide = json!({"allow": true, "type": "b", "major": 8, "access": "rw"});
        check(json!([wide, {"allow": false, "type": "b", "major": 8, "access": "w"}])).unwrap();
        check(json!([{"allow": false, "type": "b", "major": 8}, wide])).unwrap();
        let error =
            check(json!([wide, {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"}])).unwrap_err();
        assert!(error.to_string().contains("b 8:1 w"), "{error}");
    }
}
