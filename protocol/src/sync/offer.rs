//! The controller's end: what a connected device is to be sent so that it comes to hold the newest manifest.

use std::collections::BTreeMap;

use thiserror::Error;

use super::{body, delta};
use crate::limits::MAX_STREAM_DATA;
use crate::message::{
    Base, Check, GetItems, Held, Items, ManifestBegin, ManifestPiece, ManifestRefused, Message, Partial,
};

/// The manifests of one node, as its controller keeps them.
pub trait Shelf {
    /// Why they can't be read.
    type Error;

    /// The newest one; [`Held::NOTHING`] where there is none yet.
    ///
    /// # Errors
    /// It can't be read.
    fn newest(&self) -> Result<Held, Self::Error>;

    /// The body of a revision, where it is kept.
    ///
    /// # Errors
    /// It can't be read.
    fn body(&self, revision: u64) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The revisions that are kept, the newest among them.
    ///
    /// # Errors
    /// They can't be read.
    fn kept(&self) -> Result<Vec<u64>, Self::Error>;

    /// Whether a manifest is one that this controller has made, as far as it remembers, or has taken over knowingly.
    ///
    /// # Errors
    /// That can't be read.
    fn knows(&self, held: &Held) -> Result<bool, Self::Error>;
}

/// A device's message has no place now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("it {0}")]
pub struct Misplaced(String);

/// What is known of the items of a device whose revision is not kept any more.
#[derive(Debug)]
enum Inventory {
    NotAsked,
    Asked,
    Known(Items),
}

/// A difference that is being sent.
#[derive(Debug)]
struct Outgoing {
    delta: Vec<u8>,
    at: usize,
}

/// One connection's dealings about manifests.
#[derive(Debug)]
pub struct Offer {
    held: Held,
    partial: Option<Partial>,
    /// What was begun and not answered yet.
    in_flight: Option<Held>,
    /// Revision that the device refused, and whether it was a difference to nothing.
    refused: Option<(u64, bool)>,
    inventory: Inventory,
    outgoing: Option<Outgoing>,
    /// Whether there may be something to do.
    look: bool,
    stranger: bool,
}

impl Offer {
    /// Begins with what the device's Hello said.
    pub fn new(held: Held, partial: Option<Partial>) -> Self {
        Offer {
            held,
            partial,
            in_flight: None,
            refused: None,
            inventory: Inventory::NotAsked,
            outgoing: None,
            look: true,
            stranger: false,
        }
    }

    /// What the device holds, as far as it has said.
    pub fn held(&self) -> Held {
        self.held
    }

    /// Whether the device holds what this controller knows nothing of: it is left alone.
    pub fn is_stranger(&self) -> bool {
        self.stranger
    }

    /// Says that the newest manifest may be another one.
    pub fn look(&mut self) {
        self.look = true;
    }

    /// The next message for the device, to be asked for whenever there is room for one; none when there is nothing to say.
    ///
    /// # Errors
    /// As the shelf's.
    pub fn next<S: Shelf>(&mut self, shelf: &S) -> Result<Option<Message>, S::Error> {
        if let Some(outgoing) = &mut self.outgoing {
            let end = outgoing.delta.len().min(outgoing.at + MAX_STREAM_DATA);
            let bytes = outgoing.delta[outgoing.at..end].to_vec();
            outgoing.at = end;
            if end == outgoing.delta.len() {
                self.outgoing = None;
            }
            return Ok(Some(ManifestPiece { bytes }.into()));
        }
        if self.in_flight.is_some() || !std::mem::take(&mut self.look) {
            return Ok(None);
        }
        let newest = shelf.newest()?;
        if (newest.revision, newest.digest) == (self.held.revision, self.held.digest) {
            return Ok(None);
        }
        self.stranger = newest.revision <= self.held.revision || !shelf.knows(&self.held)?;
        if self.stranger {
            return Ok(None);
        }
        let whole = match self.refused {
            Some((revision, true)) if revision == newest.revision => return Ok(None),
            refused => refused.is_some_and(|(revision, _)| revision == newest.revision),
        };
        let Some(target) = shelf.body(newest.revision)? else { return Ok(None) };
        let based = if whole { Some((Base::Nothing, Vec::new())) } else { self.base(shelf)? };
        let Some((base, old)) = based else {
            if matches!(self.inventory, Inventory::Asked) {
                // The answer is under way.
                return Ok(None);
            }
            self.inventory = Inventory::Asked;
            return Ok(Some(GetItems.into()));
        };
        Ok(Some(self.begin(newest, &target, base, &old).into()))
    }

    /// What a difference can be to, and its bytes; `None` where the device has to be asked first.
    fn base<S: Shelf>(&self, shelf: &S) -> Result<Option<(Base, Vec<u8>)>, S::Error> {
        if self.held.revision == 0 {
            return Ok(Some((Base::Nothing, Vec::new())));
        }
        if let Some(old) = shelf.body(self.held.revision)?
            && body::name(self.held.revision, self.held.epoch, &old) == self.held
        {
            return Ok(Some((Base::Held, old)));
        }
        let Inventory::Known(items) = &self.inventory else { return Ok(None) };
        let mut known: BTreeMap<Check, Vec<u8>> = BTreeMap::new();
        for revision in shelf.kept()? {
            let kept = shelf.body(revision)?.unwrap_or_default();
            known.extend(body::items(&kept).into_iter().map(|item| (body::check(item), item.to_vec())));
        }
        let (mut bits, mut old) = (vec![0; items.checks.len().div_ceil(8)], Vec::new());
        for (index, check) in items.checks.iter().enumerate() {
            if let Some(item) = known.get(check) {
                bits[index / 8] |= 1 << (index % 8);
                old.extend_from_slice(item);
            }
        }
        Ok(Some((Base::Items(bits), old)))
    }

    fn begin(&mut self, newest: Held, target: &[u8], base: Base, old: &[u8]) -> ManifestBegin {
        let delta = delta::encode(old, target);
        let check = body::check(&delta);
        let goes_on = |partial: &Partial| {
            partial.revision == newest.revision && partial.check == check && partial.received as usize <= delta.len()
        };
        let from = self.partial.take().filter(goes_on).map_or(0, |partial| partial.received);
        let begin = ManifestBegin {
            revision: newest.revision,
            epoch: newest.epoch,
            // A body is far below 4 GiB, and so is its difference.
            size: target.len() as u32,
            digest: newest.digest,
            length: delta.len() as u32,
            check,
            from,
            base,
        };
        self.refused = self.refused.filter(|(revision, _)| *revision == newest.revision).map(|(one, _)| (one, true));
        self.in_flight = Some(newest);
        let at = from as usize;
        self.outgoing = (at < delta.len()).then_some(Outgoing { delta, at });
        begin
    }

    /// Takes the device's word that it holds a manifest.
    ///
    /// # Errors
    /// It was not sent this one.
    pub fn answered(&mut self, held: Held) -> Result<(), Misplaced> {
        if self.in_flight != Some(held) {
            return Err(Misplaced(format!("holds revision {}, which it was not sent", held.revision)));
        }
        (self.held, self.in_flight, self.refused, self.outgoing) = (held, None, None, None);
        self.inventory = Inventory::NotAsked;
        self.look = true;
        Ok(())
    }

    /// Takes a refusal: it is tried once more as a difference to nothing.
    pub fn refused(&mut self, refusal: &ManifestRefused) {
        if self.in_flight.take_if(|sent| sent.revision == refusal.revision).is_some() {
            let whole = self.refused.is_some_and(|(revision, _)| revision == refusal.revision);
            (self.refused, self.outgoing) = (Some((refusal.revision, whole)), None);
        }
        self.held = refusal.held;
        self.look = true;
    }

    /// Takes the items that the device holds.
    ///
    /// # Errors
    /// It was not asked.
    pub fn items(&mut self, items: Items) -> Result<(), Misplaced> {
        if !matches!(self.inventory, Inventory::Asked) {
            return Err(Misplaced("tells its items without being asked".to_owned()));
        }
        self.inventory = Inventory::Known(items);
        self.look = true;
        Ok(())
    }
}
