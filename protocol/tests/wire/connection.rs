//! Whole connections between two ends, with bytes carried by hand and time scripted.

use std::time::Duration;

use skeg_protocol::connection::HANDSHAKE_TIMEOUT;
use skeg_protocol::id::Uid;
use skeg_protocol::limits::{MAX_STREAM_DATA, MAX_STREAMS, STREAM_WINDOW};
use skeg_protocol::message::{
    Channel, Heartbeat, Message, Reject, RejectCode, StatusUpdate, StreamCredit, StreamData, StreamEnd, StreamOpen,
    StreamRequest, Welcome,
};
use skeg_protocol::{Connection, LinkError};

use crate::samples;

const HEARTBEAT: u16 = 25;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Carries what `from` has to say to `to`; gives what `to`'s caller sees and how many bytes went over.
fn carry(from: &mut Connection, to: &mut Connection, now: Duration) -> Result<(Vec<Message>, usize), LinkError> {
    let bytes = from.output(now);
    let mut seen = Vec::new();
    if !bytes.is_empty() {
        to.receive(&bytes, now);
        while let Some(message) = to.next()? {
            seen.push(message);
        }
    }
    Ok((seen, bytes.len()))
}

/// A device and a controller after their handshake at second 0.
fn linked() -> (Connection, Connection) {
    let mut device = Connection::device(samples::hello(), seconds(0)).unwrap();
    let mut controller = Connection::controller(seconds(0));
    let (seen, _) = carry(&mut device, &mut controller, seconds(0)).unwrap();
    assert_eq!(seen, [samples::hello().into()]);
    let welcome = Welcome { version: 1, heartbeat_seconds: HEARTBEAT, time: 0, retry_seconds: 1 };
    controller.welcome(welcome.clone()).unwrap();
    let (seen, _) = carry(&mut controller, &mut device, seconds(0)).unwrap();
    assert_eq!(seen, [welcome.into()]);
    assert!(device.is_open() && controller.is_open());
    (device, controller)
}

fn logs() -> StreamRequest {
    StreamRequest::Logs {
        pod: Uid([1; 16]),
        container: heapless::String::new(),
        follow: true,
        tail: None,
        since_seconds: None,
        previous: false,
        timestamps: false,
    }
}

#[test]
fn a_rejected_device_learns_why() {
    let mut device = Connection::device(samples::hello(), seconds(0)).unwrap();
    let mut controller = Connection::controller(seconds(0));
    carry(&mut device, &mut controller, seconds(0)).unwrap();
    let reject = Reject { code: RejectCode::Token, message: "used up: make another".to_owned(), retry_seconds: 60 };
    controller.reject(reject.clone()).unwrap();
    let error = carry(&mut controller, &mut device, seconds(0)).unwrap_err();
    assert_eq!(error, LinkError::Rejected(reject));
    assert_eq!(error.to_string(), "the controller refused this device (Token): used up: make another");
}

#[test]
fn a_version_that_nobody_speaks_ends_the_connection() {
    let mut device = Connection::device(samples::hello(), seconds(0)).unwrap();
    let welcome = Welcome { version: 9, heartbeat_seconds: HEARTBEAT, time: 0, retry_seconds: 1 };
    let mut frame = Vec::new();
    skeg_protocol::codec::encode(&welcome.into(), &mut frame).unwrap();
    device.receive(&frame, seconds(0));
    assert_eq!(device.next(), Err(LinkError::Version(9)));
}

#[test]
fn messages_have_their_place() {
    let mut controller = Connection::controller(seconds(0));
    let mut local = Connection::local(seconds(0));
    local.send(Heartbeat::default()).unwrap();
    assert_eq!(
        carry(&mut local, &mut controller, seconds(0)).unwrap_err(),
        LinkError::OutOfPlace { kind: 4, place: "before the handshake was done" }
    );
    let (mut device, mut controller) = linked();
    device.send(samples::hello()).unwrap();
    assert_eq!(
        carry(&mut device, &mut controller, seconds(1)).unwrap_err(),
        LinkError::OutOfPlace { kind: 1, place: "after the handshake was done" }
    );
    let welcome = Welcome { version: 1, heartbeat_seconds: 1, time: 0, retry_seconds: 1 };
    assert!(matches!(controller.welcome(welcome), Err(LinkError::OutOfPlace { kind: 2, .. })));
}

#[test]
fn an_idle_link_costs_five_bytes_an_interval_and_an_answer_now_and_then() {
    let (mut device, mut controller) = linked();
    let (mut there, mut back) = (0, 0);
    for beat in 1..=90 {
        let now = seconds(beat * u64::from(HEARTBEAT));
        assert_eq!(device.deadline(), Some(now));
        device.tick(now - seconds(1)).unwrap();
        assert!(!device.has_output(), "a heartbeat before its time");
        device.tick(now).unwrap();
        controller.tick(now).unwrap();
        let (seen, bytes) = carry(&mut device, &mut controller, now).unwrap();
        assert!(seen.is_empty());
        there += bytes;
        let (seen, bytes) = carry(&mut controller, &mut device, now).unwrap();
        assert!(seen.is_empty());
        back += bytes;
    }
    assert_eq!((there, back), (90 * 5, 90 / 8 * 5));
}

#[test]
fn behind_a_proxy_every_heartbeat_is_answered() {
    let (mut device, mut controller) = linked();
    device.always_ask();
    for beat in 1..=9 {
        let now = seconds(beat * u64::from(HEARTBEAT));
        assert_eq!(device.deadline(), Some(now));
        device.tick(now).unwrap();
        assert_eq!(carry(&mut device, &mut controller, now).unwrap().1, 5);
        assert_eq!(carry(&mut controller, &mut device, now).unwrap().1, 5);
    }
    let last = seconds(9 * u64::from(HEARTBEAT));
    let limit = last + seconds(3 * u64::from(HEARTBEAT));
    assert_eq!(device.tick(limit), Err(LinkError::Silent(limit - last)));
}

#[test]
fn silence_ends_either_end() {
    let (mut device, mut controller) = linked();
    let limit = seconds(3 * u64::from(HEARTBEAT));
    assert_eq!(controller.deadline(), Some(limit));
    controller.tick(limit - seconds(1)).unwrap();
    assert_eq!(controller.tick(limit), Err(LinkError::Silent(limit)));
    // Eight intervals without need of an answer, then three in which it asks in vain.
    let limit = seconds(11 * u64::from(HEARTBEAT));
    device.tick(limit - seconds(1)).unwrap();
    assert_eq!(device.tick(limit), Err(LinkError::Silent(limit)));
}

#[test]
fn a_handshake_that_never_comes_ends() {
    let mut controller = Connection::controller(seconds(5));
    assert_eq!(controller.deadline(), Some(seconds(5) + HANDSHAKE_TIMEOUT));
    controller.tick(seconds(24)).unwrap();
    assert!(matches!(controller.tick(seconds(25)), Err(LinkError::Silent(_))));
}

/// A log that trickles keeps the device talking, so that it never fell silent and never asked whether the
/// controller still lives; it then took a healthy link for a dead one.
#[test]
fn a_device_that_talks_without_pause_still_hears_the_controller() {
    let (mut device, mut controller) = linked();
    for now in (5..600).step_by(5).map(seconds) {
        device.send(StatusUpdate { full: false, pods: Vec::new(), removed: Vec::new() }).unwrap();
        device.tick(now).unwrap();
        controller.tick(now).unwrap();
        carry(&mut device, &mut controller, now).unwrap();
        carry(&mut controller, &mut device, now).unwrap();
    }
}

#[test]
fn a_heartbeat_that_was_not_written_yet_is_not_queued_again() {
    let (mut device, _) = linked();
    let now = seconds(HEARTBEAT.into());
    device.tick(now).unwrap();
    device.tick(now + seconds(1)).unwrap();
    assert_eq!(device.backlog(), 5);
    assert_eq!(device.deadline(), Some(now + seconds(HEARTBEAT.into())));
}

#[test]
fn credit_bounds_what_is_under_way() {
    let (mut device, mut controller) = linked();
    let id = controller.open_stream(logs()).unwrap();
    carry(&mut controller, &mut device, seconds(1)).unwrap();
    let much = vec![7; 3 * STREAM_WINDOW as usize];
    assert_eq!(device.send_stream(id, Channel::Stdout, &much), Ok(STREAM_WINDOW as usize));
    assert_eq!(device.send_stream(id, Channel::Stdout, &much), Ok(0));
    assert_eq!(device.stream_credit(id), Some(0));

    let mut seen = Vec::new();
    while device.has_output() {
        seen.extend(carry(&mut device, &mut controller, seconds(1)).unwrap().0);
    }
    assert_eq!(seen.len(), STREAM_WINDOW as usize / MAX_STREAM_DATA);
    for message in seen {
        let Message::StreamData(data) = message else { panic!("{message:?}") };
        controller.consumed(id, data.bytes.len()).unwrap();
    }
    let (seen, _) = carry(&mut controller, &mut device, seconds(1)).unwrap();
    assert!(seen.iter().all(|message| matches!(message, Message::StreamCredit(_))) && !seen.is_empty());
    assert_eq!(device.stream_credit(id), Some(STREAM_WINDOW as usize));
}

#[test]
fn a_peer_that_ignores_credit_is_cut_off() {
    let (mut device, mut controller) = linked();
    let id = controller.open_stream(logs()).unwrap();
    carry(&mut controller, &mut device, seconds(1)).unwrap();
    for _ in 0..=STREAM_WINDOW as usize / MAX_STREAM_DATA {
        device.send(StreamData { id, channel: Channel::Stdout, bytes: vec![0; MAX_STREAM_DATA] }).unwrap();
    }
    let error = carry(&mut device, &mut controller, seconds(1)).unwrap_err();
    assert_eq!(error, LinkError::Stream { id, problem: "sent more than its credit" });

    let (mut device, mut controller) = linked();
    let id = controller.open_stream(logs()).unwrap();
    carry(&mut controller, &mut device, seconds(1)).unwrap();
    controller.send(StreamCredit { id, bytes: u32::MAX }).unwrap();
    let error = carry(&mut controller, &mut device, seconds(1)).unwrap_err();
    assert_eq!(error, LinkError::Stream { id, problem: "granted more than the window" });
}

#[test]
fn streams_are_bounded_in_number_and_opened_once_by_the_right_end() {
    let (mut device, mut controller) = linked();
    for _ in 0..MAX_STREAMS {
        controller.open_stream(logs()).unwrap();
    }
    assert!(controller.open_stream(logs()).is_err());
    carry(&mut controller, &mut device, seconds(1)).unwrap();
    controller.send(StreamOpen { id: 1000, request: logs() }).unwrap();
    let error = carry(&mut controller, &mut device, seconds(1)).unwrap_err();
    assert_eq!(error, LinkError::Stream { id: 1000, problem: "one too many" });

    let (mut device, mut controller) = linked();
    controller.send(StreamOpen { id: 3, request: logs() }).unwrap();
    controller.send(StreamOpen { id: 3, request: logs() }).unwrap();
    let error = carry(&mut controller, &mut device, seconds(1)).unwrap_err();
    assert_eq!(error, LinkError::Stream { id: 3, problem: "opened twice" });

    let (mut device, mut controller) = linked();
    device.send(StreamOpen { id: 3, request: logs() }).unwrap();
    let error = carry(&mut device, &mut controller, seconds(1)).unwrap_err();
    assert_eq!(error, LinkError::Stream { id: 3, problem: "opened by a device" });
}

#[test]
fn data_of_a_closed_stream_is_dropped_without_a_word() {
    let (mut device, mut controller) = linked();
    let id = controller.open_stream(logs()).unwrap();
    carry(&mut controller, &mut device, seconds(1)).unwrap();
    device.send_stream(id, Channel::Stdout, b"late").unwrap();
    controller.close_stream(id, StreamEnd::Cancelled).unwrap();
    controller.close_stream(id, StreamEnd::Cancelled).unwrap();
    let (seen, _) = carry(&mut device, &mut controller, seconds(1)).unwrap();
    assert!(seen.is_empty());
    let (seen, _) = carry(&mut controller, &mut device, seconds(1)).unwrap();
    assert_eq!(seen.len(), 1, "one close: {seen:?}");
    assert!(device.send_stream(id, Channel::Stdout, b"later").is_err());
    assert_eq!(device.stream_credit(id), None);
}

/// Status, manifests and heartbeats must not wait behind the logs of a chatty container.
#[test]
fn what_is_urgent_goes_before_streams_and_streams_take_turns() {
    let (mut device, mut controller) = linked();
    let (one, two) = (controller.open_stream(logs()).unwrap(), controller.open_stream(logs()).unwrap());
    carry(&mut controller, &mut device, seconds(1)).unwrap();
    for id in [one, two] {
        assert_eq!(device.send_stream(id, Channel::Stdout, &[7; 40_000]), Ok(40_000));
    }
    let (seen, _) = carry(&mut device, &mut controller, seconds(1)).unwrap();
    assert!(matches!(seen[..], [Message::StreamData(_)]), "one turn: {}", seen.len());
    let update = StatusUpdate { full: true, pods: Vec::new(), removed: Vec::new() };
    device.send(update.clone()).unwrap();
    device.close_stream(one, StreamEnd::Done).unwrap();
    let mut seen = Vec::new();
    while device.has_output() {
        seen.extend(carry(&mut device, &mut controller, seconds(2)).unwrap().0);
    }
    assert_eq!(seen[0], update.into());
    let ids = seen[1..].iter().map(|message| match message {
        Message::StreamData(data) => (data.id, data.bytes.len()),
        Message::StreamClose(close) => (close.id, 0),
        other => panic!("{other:?}"),
    });
    let turns = [(two, 16384), (one, 16384), (two, 16384), (one, 7232), (two, 7232), (one, 0)];
    assert_eq!(ids.collect::<Vec<_>>(), turns);
}

#[test]
fn bytes_are_counted_by_purpose_alike_at_both_ends() {
    use skeg_protocol::Purpose;
    let (mut device, mut controller) = linked();
    device.send(StatusUpdate { full: true, pods: Vec::new(), removed: Vec::new() }).unwrap();
    device.tick(seconds(HEARTBEAT.into())).unwrap();
    carry(&mut device, &mut controller, seconds(HEARTBEAT.into())).unwrap();
    let (there, back) = (device.traffic(), controller.traffic());
    assert_eq!((there.sent, there.received), (back.received, back.sent));
    assert_eq!(there.sent[Purpose::Heartbeat as usize], 5);
    assert_eq!(there.sent[Purpose::Status as usize], 4 + 3);
    assert!(there.received[Purpose::Handshake as usize] > 4);
}
