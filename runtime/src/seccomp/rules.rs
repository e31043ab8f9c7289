//! What a profile means: for each architecture and system call number, an ordered list of answers.
//!
//! Owns the semantics of `linux.seccomp`. Must not know how a filter is encoded.
//!
//! Of all rules that match a call the strictest answers, by the kernel's own order of actions (seccomp(2), "filter return
//! value"), so the order of rules has no meaning and a further rule never loosens a stricter one. If none matches, the
//! default action does.

use super::SeccompError;
use super::architectures::{Architecture, PRIVATE, X32_BIT, architectures};
use crate::oci::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator};
use std::collections::BTreeMap;

/// The answer to a call that does not exist.
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// A comparison of one argument, all 64 bits of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) test: Test,
    /// Holds where the test does not.
    pub(super) negated: bool,
}

/// The comparisons that a filter needs; the others are their negations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Test {
    Equal { mask: u64, value: u64 },
    Greater(u64),
    AtLeast(u64),
}

/// An answer (`SECCOMP_RET_*`) for calls that meet every condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) answer: u32,
    pub(super) conditions: Vec<Condition>,
}

/// What happens to a call: the first rule that matches answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Behaviour {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: u32,
}

impl Behaviour {
    fn always(answer: u32) -> Behaviour {
        Behaviour { rules: Vec::new(), otherwise: answer }
    }
}

/// The meaning of a profile for one audit architecture: behaviours by the least number that they hold for, up to the next.
/// The first is for number 0.
pub(super) struct Meaning {
    pub(super) audit: u32,
    pub(super) ranges: Vec<(u32, Behaviour)>,
}

/// Works a profile out, the machine's own architecture first.
pub(super) fn meanings(seccomp: &LinuxSeccomp) -> Result<Vec<Meaning>, SeccompError> {
    let architectures = architectures(seccomp.architectures().as_deref().unwrap_or_default());
    let mut meanings: Vec<Meaning> = Vec::new();
    for architecture in architectures {
        let mut ranges = ranges(seccomp, architecture);
        let Some(same) = meanings.iter_mut().find(|known| known.audit == architecture.audit) else {
            if architecture.audit == X86_64 {
                ranges.push((X32_BIT, Behaviour::always(MISSING)));
            }
            meanings.push(Meaning { audit: architecture.audit, ranges });
            continue;
        };
        // x32, in the place of the range that has none of it.
        same.ranges.pop();
        same.ranges.append(&mut ranges);
    }
    Ok(meanings)
}

/// Tells whether a call of the machine's own architecture passes whatever its arguments are.
pub(super) fn passes(meanings: &[Meaning], number: i64) -> bool {
    let ranges = meanings.first().map_or(&[][..], |native| &native.ranges);
    let range = ranges.iter().rev().find(|(first, _)| i64::from(*first) <= number);
    let free = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG];
    range.is_some_and(|(_, behaviour)| behaviour.rules.is_empty() && free.contains(&behaviour.otherwise))
}

/// The one audit architecture with two numberings.
const X86_64: u32 = 0xc000_003e;

fn ranges(seccomp: &LinuxSeccomp, architecture: &Architecture) -> Vec<(u32, Behaviour)> {
    let default = answer(seccomp.default_action(), seccomp.default_errno_ret());
    let rules = rules(seccomp, architecture, default);
    // A call that is newer than all that the profile speaks of looks as on an older kernel, so that programs fall back,
    // unless the profile lets pass what it does not know.
    let lenient = matches!(seccomp.default_action(), Action::ScmpActAllow | Action::ScmpActLog);
    let named = rules.keys().rev().find(|number| **number - architecture.first < PRIVATE);
    let newest = named.filter(|_| !lenient).copied().unwrap_or(u32::MAX);
    let unnamed = |number: u32| Behaviour::always(if number > newest { MISSING } else { default });
    let mut ranges: Vec<(u32, Behaviour)> = Vec::new();
    let mut push = |number: u32, behaviour: Behaviour| {
        if ranges.last().is_none_or(|(_, last)| *last != behaviour) {
            ranges.push((number, behaviour));
        }
    };
    let mut next = architecture.first;
    for (number, rules) in rules {
        if next < number {
            push(next, unnamed(next));
        }
        push(number, behaviour(rules, default));
        next = number + 1;
    }
    push(next, unnamed(next));
    ranges
}

/// Orders the rules of one call. The sort is stable: of equally strict rules the profile's first answers.
fn behaviour(mut rules: Vec<Rule>, default: u32) -> Behaviour {
    rules.sort_by_key(|rule| strictness(rule.answer));
    let end = rules.iter().position(|rule| rule.conditions.is_empty());
    let otherwise = end.map_or(default, |end| rules[end].answer);
    rules.truncate(end.unwrap_or(rules.len()));
    Behaviour { rules, otherwise }
}

/// The rules of each number that the profile names.
fn rules(seccomp: &LinuxSeccomp, architecture: &Architecture, default: u32) -> BTreeMap<u32, Vec<Rule>> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for rule in seccomp.syscalls().iter().flatten() {
        let answer = answer(rule.action(), rule.errno_ret());
        let alternatives = alternatives(rule.args().as_deref().unwrap_or_default());
        for name in rule.names() {
            if let Some(number) = (architecture.number)(name) {
                let list = rules.entry(number).or_default();
                list.extend(alternatives.iter().map(|conditions| Rule { answer, conditions: conditions.clone() }));
            }
            for (_, through, value, mask) in architecture.multiplexed.iter().filter(|(call, ..)| call == name) {
                // Arguments lie in memory there: a stricter answer is given whatever they are, a looser one never.
                let unconditional = alternatives.iter().any(Vec::is_empty);
                let Some(number) = (architecture.number)(through) else { continue };
                if unconditional || strictness(answer) < strictness(default) {
                    let test = Test::Equal { mask: *mask, value: *value };
                    let conditions = vec![Condition { argument: 0, test, negated: false }];
                    rules.entry(number).or_default().push(Rule { answer, conditions });
                }
            }
        }
    }
    rules
}

/// The lists of conditions of which one must hold. Conditions on different arguments must all hold; several on one
/// argument are alternatives, as in runc.
fn alternatives(arguments: &[LinuxSeccompArg]) -> Vec<Vec<Condition>> {
    let conditions: Vec<Condition> = arguments.iter().map(condition).collect();
    let repeated = |condition: &Condition| conditions.iter().filter(|it| it.argument == condition.argument).count() > 1;
    if conditions.iter().any(repeated) {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    }
}

fn condition(argument: &LinuxSeccompArg) -> Condition {
    let value = argument.value();
    let (test, negated) = match argument.op() {
        Operator::ScmpCmpEq => (Test::Equal { mask: u64::MAX, value }, false),
        Operator::ScmpCmpNe => (Test::Equal { mask: u64::MAX, value }, true),
        Operator::ScmpCmpGt => (Test::Greater(value), false),
        Operator::ScmpCmpLe => (Test::Greater(value), true),
        Operator::ScmpCmpGe => (Test::AtLeast(value), false),
        Operator::ScmpCmpLt => (Test::AtLeast(value), true),
        Operator::ScmpCmpMaskedEq => (Test::Equal { mask: value, value: argument.value_two().unwrap_or(0) }, false),
    };
    // The configuration's check bounds the index.
    Condition { argument: u32::try_from(argument.index()).unwrap_or(u32::MAX).min(5), test, negated }
}

/// The kernel's number for an action; the errno is EPERM unless it is given.
pub(super) fn answer(action: Action, errno: Option<u32>) -> u32 {
    let errno = errno.unwrap_or(libc::EPERM as u32) & libc::SECCOMP_RET_DATA;
    match action {
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO | errno,
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE | errno,
        Action::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    }
}

/// The kernel's order, the strictest least: the action's half of the answer, with a sign.
pub(super) fn strictness(answer: u32) -> i32 {
    (answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed()
}
