//! Init's table of what it holds.
//!
//! Owns the items and the exits that nobody has asked for yet. Starts nothing, sends nothing, reads no clock.
//! All of its memory is reserved when it is made; pages that are never used cost nothing.

use std::collections::VecDeque;

use super::wire::{Data, Ended, Exit, Fds, Key, MAX_ITEMS, Refusal};

/// Exits of processes that nobody held, kept in case their `hold` is still under way.
const MAX_STRAYS: usize = 256;

/// One thing held for the agent.
pub(crate) struct Item {
    pub(crate) key: Key,
    pub(crate) pid: Option<i32>,
    pub(crate) data: Data,
    pub(crate) fds: Fds,
    pub(crate) ended: Option<Ended>,
    /// The present agent knows of the end.
    pub(crate) announced: bool,
}

/// Everything held, in no order.
pub(crate) struct Table {
    items: Vec<Item>,
    strays: VecDeque<(i32, Ended)>,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { items: Vec::with_capacity(MAX_ITEMS), strays: VecDeque::with_capacity(MAX_STRAYS) }
    }

    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(crate) fn items_mut(&mut self) -> &mut [Item] {
        &mut self.items
    }

    /// Takes an item in, in place of one with the same key. `is_child` tells whether a process is init's child
    /// and not yet reaped; it is asked because a number may have been given to a new process since.
    pub(crate) fn hold(
        &mut self,
        mut item: Item,
        is_child: impl FnOnce(i32) -> bool,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let place = self.items.iter().position(|held| held.key == item.key);
        if place.is_none() && self.items.len() == MAX_ITEMS {
            return Err(Refusal::Full);
        }
        let known = place.map(|place| &self.items[place]).filter(|held| held.pid == item.pid && held.ended.is_some());
        if let Some(held) = known {
            (item.ended, item.announced) = (held.ended, held.announced);
        } else if let Some(pid) = item.pid {
            let stray = self.strays.iter().rposition(|(stray, _)| *stray == pid);
            let stray = stray.and_then(|place| self.strays.remove(place)).map(|(_, ended)| ended);
            if !is_child(pid) {
                item.ended = Some(stray.unwrap_or(Ended { exit: Exit::Lost, at_ms: now_ms }));
            }
        }
        match place {
            Some(place) => self.items[place] = item,
            None => self.items.push(item),
        }
        Ok(())
    }

    /// Drops an item and its descriptors. A key that is not held is fine: the wish is fulfilled.
    pub(crate) fn forget(&mut self, key: &Key) {
        if let Some(place) = self.items.iter().position(|held| held.key == *key) {
            self.items.swap_remove(place);
        }
    }

    /// Notes the end of a process that init has reaped.
    pub(crate) fn ended(&mut self, pid: i32, ended: Ended) {
        let mut held = false;
        for item in self.items.iter_mut().filter(|item| item.pid == Some(pid) && item.ended.is_none()) {
            (item.ended, item.announced, held) = (Some(ended), false, true);
        }
        if !held {
            if self.strays.len() == MAX_STRAYS {
                self.strays.pop_front();
            }
            self.strays.push_back((pid, ended));
        }
    }

    /// The held processes that have not ended.
    pub(crate) fn running(&self) -> impl Iterator<Item = i32> {
        self.items.iter().filter(|item| item.ended.is_none()).filter_map(|item| item.pid)
    }
}
