//! From a profile's meaning to a program of classic BPF (Documentation/networking/filter.rst of the kernel).
//!
//! Owns the encoding: a binary search over system call numbers, whose leaves share what follows them. Must not know
//! profiles.
//!
//! Classic BPF only jumps forward, so the program is written backward: whatever a jump leads to is there before the jump,
//! and its distance is known.

use super::rules::{Behaviour, Condition, Meaning, Rule, Test};
use crate::sys::Instruction;
use std::collections::HashMap;

/// The fields of `struct seccomp_data` (seccomp(2)); arguments are 64 bits each, the lower half first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// How far a conditional jump is let lead: 255, less the two jumps that may come between.
const REACH: usize = 250;

/// A place in the program, counted from its end.
#[derive(Clone, Copy)]
struct Label(usize);

/// Encodes a profile. Calls of an architecture that it does not name end the process.
pub(super) fn assemble(meanings: &[Meaning]) -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    let mut next = assembler.answer(libc::SECCOMP_RET_KILL_PROCESS);
    for meaning in meanings.iter().rev() {
        let search = assembler.search(&meaning.ranges);
        // What is loaded falls through to the search.
        assembler.within(0, search);
        let body = assembler.push(LOAD, NUMBER);
        next = assembler.branch(IF_EQUAL, meaning.audit, body, next);
    }
    assembler.push(LOAD, ARCHITECTURE);
    assembler.backward.reverse();
    assembler.backward
}

/// The program so far, its last instruction first.
#[derive(Default)]
struct Assembler<'a> {
    backward: Vec<Instruction>,
    answers: HashMap<u32, Label>,
    behaviours: HashMap<&'a Behaviour, Label>,
}

impl<'a> Assembler<'a> {
    fn push(&mut self, code: u32, value: u32) -> Label {
        self.backward.push(Instruction { code: code as u16, if_true: 0, if_false: 0, value });
        Label(self.backward.len() - 1)
    }

    /// The number of instructions between a new one and the place.
    fn distance(&self, to: Label) -> usize {
        self.backward.len() - to.0 - 1
    }

    /// The place itself if it is no farther away than this, or else a jump to it.
    fn within(&mut self, reach: usize, to: Label) -> Label {
        let distance = self.distance(to);
        if distance <= reach {
            return to;
        }
        // A program that is longer than the kernel takes is refused before anybody runs it.
        self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))
    }

    fn branch(&mut self, code: u32, value: u32, yes: Label, no: Label) -> Label {
        let (yes, no) = (self.within(REACH, yes), self.within(REACH, no));
        let (if_true, if_false) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.backward.push(Instruction { code: code as u16, if_true, if_false, value });
        Label(self.backward.len() - 1)
    }

    fn answer(&mut self, answer: u32) -> Label {
        match self.answers.get(&answer).copied() {
            Some(label) if self.distance(label) <= REACH => label,
            _ => {
                let label = self.push(RETURN, answer);
                self.answers.insert(answer, label);
                label
            }
        }
    }

    /// Finds the behaviour for the number that is loaded.
    fn search(&mut self, ranges: &'a [(u32, Behaviour)]) -> Label {
        match ranges {
            [] => self.answer(libc::SECCOMP_RET_KILL_PROCESS),
            [(_, behaviour)] => self.behaviour(behaviour),
            _ => {
                let (below, from) = ranges.split_at(ranges.len() / 2);
                let yes = self.search(from);
                let no = self.search(below);
                self.branch(IF_AT_LEAST, from[0].0, yes, no)
            }
        }
    }

    fn behaviour(&mut self, behaviour: &'a Behaviour) -> Label {
        if behaviour.rules.is_empty() {
            return self.answer(behaviour.otherwise);
        }
        if let Some(label) = self.behaviours.get(behaviour).copied() {
            return label;
        }
        let mut next = self.answer(behaviour.otherwise);
        for Rule { answer, conditions } in behaviour.rules.iter().rev() {
            let mut met = self.answer(*answer);
            for condition in conditions.iter().rev() {
                met = self.condition(*condition, met, next);
            }
            next = met;
        }
        self.behaviours.insert(behaviour, next);
        next
    }

    /// Compares 64 bits with instructions of 32: the upper half decides unless it is equal.
    fn condition(&mut self, condition: Condition, met: Label, unmet: Label) -> Label {
        let (yes, no) = if condition.negated { (unmet, met) } else { (met, unmet) };
        let lower = ARGUMENTS + 8 * condition.argument;
        let upper = lower + 4;
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        match condition.test {
            Test::Equal { mask, value } => {
                let ((mask_upper, mask_lower), (value_upper, value_lower)) = (halves(mask), halves(value));
                let equal = self.half_equal(lower, mask_lower, value_lower, yes, no);
                self.half_equal(upper, mask_upper, value_upper, equal, no)
            }
            Test::Greater(value) => self.ordered(IF_GREATER, (lower, upper), halves(value), yes, no),
            Test::AtLeast(value) => self.ordered(IF_AT_LEAST, (lower, upper), halves(value), yes, no),
        }
    }

    fn half_equal(&mut self, field: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        if mask == 0 {
            return if value == 0 { yes } else { no };
        }
        self.branch(IF_EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.push(AND, mask);
        }
        self.push(LOAD, field)
    }

    fn ordered(&mut self, code: u32, fields: (u32, u32), value: (u32, u32), yes: Label, no: Label) -> Label {
        self.branch(code, value.1, yes, no);
        let lower = self.push(LOAD, fields.0);
        let equal = self.branch(IF_EQUAL, value.0, lower, no);
        self.branch(IF_GREATER, value.0, yes, equal);
        self.push(LOAD, fields.1)
    }
}
