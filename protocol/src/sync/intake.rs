//! The device's end: puts a manifest together from its difference, however many connections that takes.

use super::{body, delta};
use crate::id::Digest;
use crate::limits::MAX_BODY;
use crate::manifest::Manifest;
use crate::message::{Base, Held, Items, ManifestBegin, ManifestPiece, ManifestRefused, Message, Partial};
use crate::status;

/// A manifest that came whole and breaks no rule: to be made durable, then [`Intake::stored`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// What it is called.
    pub held: Held,
    /// What it says.
    pub manifest: Manifest,
    /// As it came.
    body: Vec<u8>,
}

/// What comes of a message about a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "an answer lives for one step; boxes would cost more")]
pub enum Answer {
    /// More has to come.
    Wait,
    /// To be made durable.
    Take(Box<Whole>),
    /// To be sent.
    Say(Message),
}

/// A manifest under way.
#[derive(Debug)]
struct Coming {
    begin: ManifestBegin,
    delta: Vec<u8>,
}

/// The device's manifest and the next one under way. It outlives connections.
#[derive(Debug, Default)]
pub struct Intake {
    held: Option<Held>,
    body: Vec<u8>,
    coming: Option<Coming>,
}

impl Intake {
    /// A device that holds this manifest.
    pub fn new(manifest: &Manifest) -> Self {
        let held = Held { revision: manifest.revision, digest: manifest.digest, epoch: manifest.epoch };
        // One that does not encode is no base; the controller then learns that from a refusal and sends all of it.
        Intake { held: Some(held), body: body::encode(manifest).unwrap_or_default(), coming: None }
    }

    /// What is held.
    pub fn held(&self) -> Held {
        self.held.unwrap_or(Held::NOTHING)
    }

    /// How far the next manifest has come.
    pub fn partial(&self) -> Option<Partial> {
        let coming = self.coming.as_ref().filter(|coming| !coming.delta.is_empty())?;
        // It is never longer than its announced length.
        let received = coming.delta.len() as u32;
        Some(Partial { revision: coming.begin.revision, check: coming.begin.check, received })
    }

    /// The items that are held.
    pub fn items(&self) -> Items {
        Items { checks: body::items(&self.body).into_iter().map(body::check).collect() }
    }

    fn refuse(&mut self, revision: u64, why: impl Into<String>) -> Answer {
        self.coming = None;
        Answer::Say(ManifestRefused { revision, held: self.held(), message: status::text(why) }.into())
    }

    /// Begins a manifest, or goes on with it. A begin takes the place of another manifest under way.
    pub fn begin(&mut self, begin: ManifestBegin) -> Answer {
        let (revision, held) = (begin.revision, self.held());
        if (revision, begin.digest) == (held.revision, held.digest) {
            // The answer to it was lost.
            self.coming = None;
            return Answer::Say(held.into());
        }
        if revision <= held.revision {
            return self.refuse(revision, format!("revision {} is held, it never goes back", held.revision));
        }
        if begin.size as usize > MAX_BODY || begin.length as usize > MAX_BODY || begin.from > begin.length {
            let sizes = format!("{} bytes by a difference of {}", begin.size, begin.length);
            return self.refuse(revision, format!("{sizes} is out of bounds"));
        }
        let same = |coming: &Coming| coming.begin.revision == revision && coming.begin.check == begin.check;
        let delta = match self.coming.take().filter(same) {
            Some(coming) if coming.delta.len() >= begin.from as usize => coming.delta,
            _ if begin.from == 0 => Vec::new(),
            _ => return self.refuse(revision, format!("nothing is known of its first {} bytes", begin.from)),
        };
        let mut coming = Coming { begin, delta };
        coming.delta.truncate(coming.begin.from as usize);
        self.coming = Some(coming);
        self.build()
    }

    /// Takes the next piece. One that belongs to nothing is dropped: its begin was answered.
    pub fn piece(&mut self, piece: &ManifestPiece) -> Answer {
        let Some(coming) = &mut self.coming else { return Answer::Wait };
        let revision = coming.begin.revision;
        if piece.bytes.len() > coming.begin.length as usize - coming.delta.len() {
            return self.refuse(revision, "its difference is longer than was announced");
        }
        coming.delta.extend_from_slice(&piece.bytes);
        self.build()
    }

    /// Builds the manifest where its difference is there whole.
    fn build(&mut self) -> Answer {
        let whole = |coming: &mut Coming| coming.delta.len() == coming.begin.length as usize;
        let Some(Coming { begin, delta }) = self.coming.take_if(whole) else { return Answer::Wait };
        match self.assemble(&begin, &delta) {
            Ok(whole) => Answer::Take(Box::new(whole)),
            Err(problem) => self.refuse(begin.revision, problem),
        }
    }

    fn assemble(&self, begin: &ManifestBegin, delta: &[u8]) -> Result<Whole, String> {
        let named = |index: &usize, bits: &[u8]| bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        let base = match &begin.base {
            Base::Nothing => Vec::new(),
            Base::Held => self.body.clone(),
            Base::Items(bits) => {
                let items = body::items(&self.body).into_iter().enumerate();
                items.filter(|(index, _)| named(index, bits)).flat_map(|(_, item)| item.to_vec()).collect()
            }
        };
        let size = begin.size as usize;
        let body = delta::apply(&base, delta, size).map_err(|error| format!("its difference is none: {error}"))?;
        let digest = Digest::of(&body);
        if (body.len(), digest) != (size, begin.digest) {
            return Err(format!("its digest is {digest}, {} was announced", begin.digest));
        }
        let held = Held { revision: begin.revision, digest, epoch: begin.epoch };
        let manifest = body::decode(held, &body).map_err(|error| error.to_string())?;
        manifest.validate().map_err(|invalid| invalid.to_string())?;
        Ok(Whole { held, manifest, body })
    }

    /// Notes that a manifest is durable; gives what is to be told.
    pub fn stored(&mut self, whole: Whole) -> Message {
        self.held = Some(whole.held);
        self.body = whole.body;
        whole.held.into()
    }

    /// Notes that a manifest could not be made durable; gives what is to be told.
    pub fn not_stored(&self, revision: u64, why: &str) -> Message {
        ManifestRefused { revision, held: self.held(), message: status::text(why) }.into()
    }
}
