//! Manifests on their way from a controller's shelf to a device, with the messages carried by hand.

use std::collections::BTreeMap;
use std::convert::Infallible;

use skeg_protocol::id::{Digest, Uid};
use skeg_protocol::manifest::Manifest;
use skeg_protocol::message::{Base, Epoch, Held, ManifestBegin, ManifestPiece, Message};
use skeg_protocol::sync::{Answer, Intake, Offer, Shelf, body};
use skeg_protocol::{Pod, codec};

use crate::samples;

const EPOCH: Epoch = [7; 8];

/// A controller's memory.
#[derive(Default)]
struct Memory {
    bodies: BTreeMap<u64, Vec<u8>>,
    /// The highest revision that it knows to be of its making.
    highest: u64,
}

impl Memory {
    fn make(&mut self, pods: Vec<Pod>) {
        let manifest = Manifest { pods, ..Manifest::default() };
        self.highest += 1;
        self.bodies.insert(self.highest, body::encode(&manifest).unwrap());
    }
}

impl Shelf for Memory {
    type Error = Infallible;

    fn newest(&self) -> Result<Held, Infallible> {
        let newest = self.bodies.last_key_value();
        Ok(newest.map_or(Held::NOTHING, |(revision, bytes)| body::name(*revision, EPOCH, bytes)))
    }

    fn body(&self, revision: u64) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.bodies.get(&revision).cloned())
    }

    fn kept(&self) -> Result<Vec<u64>, Infallible> {
        Ok(self.bodies.keys().copied().collect())
    }

    fn knows(&self, held: &Held) -> Result<bool, Infallible> {
        Ok(held.revision == 0 || (held.epoch == EPOCH && held.revision <= self.highest))
    }
}

/// Pods that differ as those of one board do.
fn pods(count: u8) -> Vec<Pod> {
    let named = |number: u8| {
        let mut pod = samples::pod();
        pod.uid = Uid([number; 16]);
        pod.name = format!("service-{number}").as_str().try_into().unwrap();
        pod.containers[0].image.reference = format!("registry.example/team/service-{number}:1.4.2");
        pod.containers[0].image.digest = Digest::of(&[number]);
        pod.containers[0].ports.clear();
        pod.init_containers.clear();
        pod
    };
    (1..=count).map(named).collect()
}

/// Carries everything that there is to say, as a device whose disk works; gives the bytes of frames downwards.
fn settle(offer: &mut Offer, memory: &Memory, intake: &mut Intake) -> usize {
    let mut bytes = 0;
    while let Ok(Some(message)) = offer.next(memory) {
        let mut frame = Vec::new();
        codec::encode(&message, &mut frame).unwrap();
        bytes += frame.len();
        let answer = match message {
            Message::ManifestBegin(begin) => intake.begin(begin),
            Message::ManifestPiece(piece) => intake.piece(&piece),
            Message::GetItems(_) => Answer::Say(intake.items().into()),
            other => panic!("{other:?}"),
        };
        let said = match answer {
            Answer::Wait => continue,
            Answer::Take(whole) => intake.stored(*whole),
            Answer::Say(message) => message,
        };
        match said {
            Message::Held(held) => offer.answered(held).unwrap(),
            Message::Items(items) => offer.items(items).unwrap(),
            Message::ManifestRefused(refusal) => offer.refused(&refusal),
            other => panic!("{other:?}"),
        }
    }
    bytes
}

/// A device that holds what the memory has, and the connection's offer.
fn settled(memory: &Memory) -> (Offer, Intake) {
    let (mut offer, mut intake) = (Offer::new(Held::NOTHING, None), Intake::default());
    settle(&mut offer, memory, &mut intake);
    assert_eq!(intake.held(), memory.newest().unwrap());
    (offer, intake)
}

#[test]
fn a_new_image_of_one_of_twenty_pods_costs_little() {
    let mut memory = Memory::default();
    memory.make(pods(20));
    let (mut offer, mut intake) = settled(&memory);
    let mut changed = pods(20);
    let image = &mut changed[11].containers[0].image;
    image.reference = "registry.example/team/service-12:1.4.3".to_owned();
    image.digest = Digest::of(b"another");
    memory.make(changed);
    offer.look();
    let bytes = settle(&mut offer, &memory, &mut intake);
    println!("an image's change: {bytes} bytes of frames; the whole manifest: {}", memory.bodies[&2].len());
    assert!(bytes <= 200, "{bytes}");
    assert_eq!(intake.held(), memory.newest().unwrap());
}

#[test]
fn a_pod_under_a_new_uid_is_small_too() {
    let mut memory = Memory::default();
    memory.make(pods(20));
    let (mut offer, mut intake) = settled(&memory);
    let mut changed = pods(20);
    changed[19].uid = Uid([99; 16]);
    changed[19].name = "service-20-x7k".try_into().unwrap();
    memory.make(changed);
    offer.look();
    let bytes = settle(&mut offer, &memory, &mut intake);
    assert!(bytes <= 200, "{bytes}");
}

/// Bytes without repeats, so that a manifest takes many pieces.
fn large() -> Vec<Pod> {
    let mut pods = pods(60);
    for (number, pod) in pods.iter_mut().enumerate() {
        let words =
            (0..40_u64).map(|word| Digest::of(&[number as u64, word].map(u64::to_le_bytes).concat()).to_string());
        pod.containers[0].args = words.collect();
    }
    pods
}

#[test]
fn a_manifest_goes_on_where_its_connection_ended() {
    let mut memory = Memory::default();
    memory.make(large());
    let mut intake = Intake::default();
    let (mut pieces, mut connections) = (0, 0);
    while intake.held().revision == 0 {
        // Each connection lives for its begin and two pieces.
        let mut offer = Offer::new(intake.held(), intake.partial());
        connections += 1;
        for _ in 0..3 {
            let answer = match offer.next(&memory).unwrap() {
                Some(Message::ManifestBegin(begin)) => intake.begin(begin),
                Some(Message::ManifestPiece(piece)) => {
                    pieces += 1;
                    intake.piece(&piece)
                }
                other => panic!("{other:?}"),
            };
            if let Answer::Take(whole) = answer {
                intake.stored(*whole);
                break;
            }
        }
    }
    assert!(connections > 3, "{connections}");
    let whole = skeg_protocol::sync::delta::encode(b"", &memory.bodies[&1]).len();
    assert_eq!(pieces, whole.div_ceil(skeg_protocol::limits::MAX_STREAM_DATA));
}

#[test]
fn a_part_of_what_has_changed_meanwhile_is_not_used() {
    let mut memory = Memory::default();
    memory.make(large());
    let mut intake = Intake::default();
    let mut offer = Offer::new(Held::NOTHING, None);
    for _ in 0..2 {
        match offer.next(&memory).unwrap() {
            Some(Message::ManifestBegin(begin)) => intake.begin(begin),
            Some(Message::ManifestPiece(piece)) => intake.piece(&piece),
            other => panic!("{other:?}"),
        };
    }
    assert!(intake.partial().is_some());
    memory.make(pods(3));
    let mut offer = Offer::new(intake.held(), intake.partial());
    settle(&mut offer, &memory, &mut intake);
    assert_eq!(intake.held(), memory.newest().unwrap());
}

#[test]
fn a_device_that_was_away_for_long_is_asked_for_its_items() {
    let mut memory = Memory::default();
    memory.make(pods(20));
    let (_, mut intake) = settled(&memory);
    let mut changed = pods(20);
    changed[3].termination_grace_seconds = 7;
    memory.make(changed);
    // The device's revision is not kept any more.
    memory.bodies.remove(&1);
    let mut offer = Offer::new(intake.held(), intake.partial());
    let bytes = settle(&mut offer, &memory, &mut intake);
    assert_eq!(intake.held(), memory.newest().unwrap());
    assert!(bytes <= 700, "{bytes}");
}

/// It was asked twice, and its second answer was taken for a breach. Found by `cargo xtask sim` (seed 11).
#[test]
fn a_change_while_the_items_are_under_way_asks_no_second_time() {
    let mut memory = Memory::default();
    memory.make(pods(2));
    let (_, mut intake) = settled(&memory);
    memory.make(pods(3));
    memory.bodies.remove(&1);
    let mut offer = Offer::new(intake.held(), None);
    assert!(matches!(offer.next(&memory), Ok(Some(Message::GetItems(_)))));
    memory.make(pods(4));
    offer.look();
    assert_eq!(offer.next(&memory), Ok(None));
    offer.items(intake.items()).unwrap();
    settle(&mut offer, &memory, &mut intake);
    assert_eq!(intake.held(), memory.newest().unwrap());
}

#[test]
fn an_answer_that_was_lost_is_given_again() {
    let mut memory = Memory::default();
    memory.make(pods(2));
    let (_, mut intake) = settled(&memory);
    let mut offer = Offer::new(Held::NOTHING, None);
    let Some(Message::ManifestBegin(begin)) = offer.next(&memory).unwrap() else { panic!("no begin") };
    assert_eq!(intake.begin(begin), Answer::Say(memory.newest().unwrap().into()));
    assert_eq!(intake.piece(&ManifestPiece { bytes: vec![1] }), Answer::Wait);
    offer.answered(intake.held()).unwrap();
    assert_eq!(offer.next(&memory), Ok(None));
}

#[test]
fn a_controller_with_an_old_memory_leaves_the_device_alone() {
    let mut memory = Memory::default();
    for count in 1..=5 {
        memory.make(pods(count));
    }
    let (_, mut intake) = settled(&memory);
    let held = intake.held();
    // Restored from a backup of revision 3, then changed again, even beyond the device's number.
    memory.bodies.retain(|revision, _| *revision <= 3);
    memory.highest = 3;
    let mut offer = Offer::new(held, None);
    assert_eq!(offer.next(&memory), Ok(None));
    assert!(offer.is_stranger());
    memory.bodies.insert(9, body::encode(&Manifest::default()).unwrap());
    offer.look();
    assert_eq!(offer.next(&memory), Ok(None));
    assert!(offer.is_stranger() && intake.held() == held);
    // Somebody consents: the revision counts as known from now on.
    memory.highest = 9;
    offer.look();
    settle(&mut offer, &memory, &mut intake);
    assert_eq!((intake.held().revision, offer.is_stranger()), (9, false));
}

#[test]
fn a_device_never_goes_back() {
    let mut memory = Memory::default();
    for count in 1..=3 {
        memory.make(pods(count));
    }
    let (_, mut intake) = settled(&memory);
    let begin = |revision| ManifestBegin {
        revision,
        epoch: EPOCH,
        base: Base::Nothing,
        size: 0,
        digest: Digest::of(b""),
        length: 0,
        check: [0; 8],
        from: 0,
    };
    for revision in [0, 2, 3] {
        let Answer::Say(Message::ManifestRefused(refusal)) = intake.begin(begin(revision)) else { panic!("taken") };
        assert!(refusal.message.contains("never goes back") && refusal.held.revision == 3);
    }
    assert!(matches!(intake.begin(begin(4)), Answer::Take(_)));
}

#[test]
fn what_the_device_refuses_is_sent_once_more_whole_and_then_left() {
    let mut memory = Memory::default();
    memory.make(pods(2));
    let (mut offer, mut intake) = settled(&memory);
    let mut bad = pods(2);
    bad[0].containers.clear();
    memory.make(bad);
    offer.look();
    settle(&mut offer, &memory, &mut intake);
    assert_eq!(intake.held().revision, 1);
    offer.look();
    assert_eq!(offer.next(&memory), Ok(None), "it was refused twice");
    memory.make(pods(3));
    offer.look();
    settle(&mut offer, &memory, &mut intake);
    assert_eq!(intake.held().revision, 3);
}
