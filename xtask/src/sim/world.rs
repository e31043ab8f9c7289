//! One run: a controller, some devices, and everything that goes wrong between them, in an order that the seed decides.
//! Both ends are the product's own state machines; disk, network and time are played here.

use std::collections::BTreeMap;
use std::time::Duration;

use skeg_protocol::message::{
    Channel, Epoch, Held, Hello, NodeInfo, StatusUpdate, StreamData, StreamEnd, StreamRequest, VERSIONS, Welcome,
};
use skeg_protocol::pace::Ended;
use skeg_protocol::sync::{Answer, Offer, Shelf, Told};
use skeg_protocol::{Connection, LinkError, Message, Uid};

use super::controller::Controller;
use super::device::{Device, Storing};
use super::random::Random;
use super::wire::{Arrival, Wire};

/// Seconds between heartbeats.
const HEARTBEAT: u16 = 20;
/// How long things go wrong.
const STORM: Duration = Duration::from_secs(3_600);
/// How long after that everything must be as it should: the slowest link carries the largest manifest several times.
const CALM: Duration = Duration::from_secs(1_800);
/// Bytes outside streams that either end may have waiting.
const BACKLOG: usize = 256 * 1024;

/// The device's end of a link.
struct Near {
    connection: Connection,
    told: Option<Told>,
    /// A log that is being sent, and how many bytes of it are left.
    log: Option<(u32, usize)>,
}

/// The controller's end of a link.
struct Far {
    /// Tells it from every other connection.
    id: usize,
    connection: Connection,
    offer: Option<Offer>,
}

/// A connection, however much of it still exists.
struct Link {
    device: usize,
    up: Wire,
    down: Wire,
    near: Option<Near>,
    far: Option<Far>,
}

/// Everything.
pub(super) struct World {
    random: Random,
    now: Duration,
    controller: Controller,
    devices: Vec<Device>,
    links: Vec<Link>,
    next_fault: Duration,
    /// When the controller is started again.
    start_at: Option<Duration>,
    /// What every revision is, whoever remembers it.
    truth: BTreeMap<(usize, Epoch, u64), Held>,
    /// Connections so far, for the summary.
    pub(super) connections: usize,
    /// Manifests that were made durable.
    pub(super) applied: usize,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 1 + random.below(3) as usize;
        let devices: Vec<Device> = (0..count).map(|_| Device::new(&mut random)).collect();
        World {
            controller: Controller::new(count, &mut random),
            devices,
            random,
            now: Duration::ZERO,
            links: Vec::new(),
            next_fault: Duration::ZERO,
            start_at: None,
            truth: BTreeMap::new(),
            connections: 0,
            applied: 0,
        }
    }

    /// Runs the storm and the calm after it, then checks that everything has come to rest as it should.
    ///
    /// # Panics
    /// A promise is broken.
    pub(super) fn run(&mut self) {
        while self.now < STORM {
            self.step(STORM);
            if self.now >= self.next_fault {
                self.fault();
                let pause = self.random.millis(40_000);
                self.next_fault = self.now + pause;
            }
        }
        self.make_peace();
        while self.now < STORM + CALM {
            self.step(STORM + CALM);
        }
        for index in 0..self.devices.len() {
            self.check_rest(index);
        }
    }

    /// Goes on to the next thing that happens, at the latest to `end`.
    fn step(&mut self, end: Duration) {
        let device_times = self.devices.iter().flat_map(|device| {
            let stored = device.storing.as_ref().map(|storing| storing.done);
            [stored, device.connect_at.filter(|_| device.storing.is_none())]
        });
        let link_times = self.links.iter().flat_map(|link| {
            let ahead = self.devices[link.device].ahead;
            let near = link.near.as_ref().and_then(|near| near.connection.deadline());
            let far = link.far.as_ref().and_then(|far| far.connection.deadline());
            [link.up.next_at(), link.down.next_at(), near.map(|at| at.saturating_sub(ahead)), far]
        });
        let fault = Some(self.next_fault).filter(|at| *at < STORM);
        let next = device_times.chain(link_times).chain([fault, self.start_at]).flatten().min();
        self.now = next.unwrap_or(end).clamp(self.now, end);
        if self.start_at.is_some_and(|at| at <= self.now) {
            (self.start_at, self.controller.up) = (None, true);
        }
        for index in 0..self.devices.len() {
            self.finish_storing(index);
            self.connect(index);
        }
        for index in 0..self.links.len() {
            self.carry(index);
            self.tick(index);
            self.pump(index);
        }
        self.links.retain(|link| link.near.is_some() || link.far.is_some());
        // Indices of links are only kept by their devices and the controller.
        self.renumber();
    }

    fn renumber(&mut self) {
        for device in &mut self.devices {
            device.link = None;
        }
        for (index, link) in self.links.iter().enumerate() {
            if link.near.is_some() {
                self.devices[link.device].link = Some(index);
            }
        }
    }

    fn finish_storing(&mut self, index: usize) {
        let (device, now) = (&mut self.devices[index], self.now);
        let Some(Storing { whole, .. }) = device.storing.take_if(|storing| storing.done <= now) else { return };
        let answer = if device.write(&whole) {
            self.applied += 1;
            let made = self.truth.get(&(index, whole.held.epoch, whole.held.revision));
            assert_eq!(made, Some(&whole.held), "what was applied is not what was made");
            device.intake.stored(whole)
        } else {
            device.intake.not_stored(whole.held.revision, "the disk is full")
        };
        if let Some(near) = device.link.and_then(|link| self.links[link].near.as_mut()) {
            send(&mut near.connection, answer);
            tell(near, device);
        }
    }

    fn connect(&mut self, index: usize) {
        let device = &mut self.devices[index];
        if device.storing.is_some() || device.connect_at.is_none_or(|at| at > self.now) {
            return;
        }
        device.connect_at = None;
        if !self.controller.up || self.random.once_in(8) {
            let chance = self.random.part();
            device.connect_at = Some(self.now + device.pace.next(Ended::Failed, chance));
            return;
        }
        let hello = Hello {
            versions: VERSIONS,
            join: None,
            node: node(index),
            held: device.intake.held(),
            partial: device.intake.partial(),
        };
        assert_eq!(device.intake.held(), device.held(), "a device says something else than it holds");
        let connection = Connection::device(hello, self.now + device.ahead).unwrap_or_else(|error| panic!("{error}"));
        let near = Near { connection, told: None, log: None };
        self.connections += 1;
        let far = Far { id: self.connections, connection: Connection::controller(self.now), offer: None };
        device.link = Some(self.links.len());
        let (up, down) = (Wire::new(&mut self.random), Wire::new(&mut self.random));
        self.links.push(Link { device: index, up, down, near: Some(near), far: Some(far) });
    }

    /// Delivers what has arrived.
    fn carry(&mut self, index: usize) {
        while let Some(arrival) = self.links[index].up.take(self.now) {
            let Some(far) = &mut self.links[index].far else { continue };
            match arrival {
                Arrival::End => self.close_far(index),
                Arrival::Bytes(bytes) => {
                    far.connection.receive(&bytes, self.now);
                    self.hear_far(index);
                }
            }
        }
        while let Some(arrival) = self.links[index].down.take(self.now) {
            let ahead = self.devices[self.links[index].device].ahead;
            let Some(near) = &mut self.links[index].near else { continue };
            match arrival {
                Arrival::End => self.close_near(index, None),
                Arrival::Bytes(bytes) => {
                    near.connection.receive(&bytes, self.now + ahead);
                    self.hear_near(index);
                }
            }
        }
    }

    fn hear_near(&mut self, index: usize) {
        loop {
            let link = &mut self.links[index];
            let Some(near) = &mut link.near else { return };
            match near.connection.next() {
                Ok(Some(message)) => self.obey(index, message),
                Ok(None) => return,
                Err(error) => panic!("the controller broke a rule: {error}"),
            }
        }
    }

    /// The device takes a message.
    fn obey(&mut self, index: usize, message: Message) {
        let link = &mut self.links[index];
        let device = &mut self.devices[link.device];
        let Some(near) = &mut link.near else { return };
        let answer = match message {
            Message::Welcome(welcome) => {
                device.pace.spread(welcome.retry_seconds);
                near.told = Some(Told::default());
                return tell(near, device);
            }
            Message::ManifestBegin(begin) => device.intake.begin(begin),
            Message::ManifestPiece(piece) => device.intake.piece(&piece),
            Message::GetItems(_) => Answer::Say(device.intake.items().into()),
            Message::StreamOpen(open) => {
                near.log = Some((open.id, 300_000));
                return;
            }
            Message::StreamCredit(_) => return,
            Message::StreamClose(_) => {
                near.log = None;
                return;
            }
            other => panic!("the controller sent {other:?}"),
        };
        match answer {
            Answer::Wait => {}
            Answer::Say(message) => send(&mut near.connection, message),
            Answer::Take(whole) => {
                assert!(device.storing.is_none(), "two manifests at once");
                let done = self.now + self.random.millis(3_000);
                device.storing = Some(Storing { whole: *whole, done });
            }
        }
    }

    fn hear_far(&mut self, index: usize) {
        loop {
            let Some(far) = &mut self.links[index].far else { return };
            match far.connection.next() {
                Ok(Some(message)) => self.listen(index, message),
                Ok(None) => return,
                Err(error) => panic!("a device broke a rule: {error}"),
            }
        }
    }

    /// The controller takes a message.
    fn listen(&mut self, index: usize, message: Message) {
        let device = self.links[index].device;
        if let Message::Hello(hello) = message {
            return self.admit(index, hello);
        }
        let current = self.controller.current[device] == self.links[index].far.as_ref().map(|far| far.id);
        let Some(far) = &mut self.links[index].far else { return };
        let Some(offer) = &mut far.offer else { panic!("before the Hello: {message:?}") };
        match message {
            Message::Held(held) => offer.answered(held).unwrap_or_else(|error| panic!("{error}")),
            Message::ManifestRefused(refusal) => offer.refused(&refusal),
            Message::Items(items) => offer.items(items).unwrap_or_else(|error| panic!("{error}")),
            Message::StatusUpdate(update) if current => self.controller.hear(device, update),
            Message::StatusUpdate(_) => {}
            Message::StreamData(StreamData { id, bytes, .. }) => {
                far.connection.consumed(id, bytes.len()).unwrap_or_else(|error| panic!("{error}"));
            }
            Message::StreamClose(_) => {}
            other => panic!("a device sent {other:?}"),
        }
    }

    fn admit(&mut self, index: usize, hello: Hello) {
        let device = self.links[index].device;
        let old = self.controller.current[device];
        let shelf = &mut self.controller.shelves[device];
        let Some(far) = &mut self.links[index].far else { return };
        let (held, Ok(newest), Ok(known)) = (hello.held, shelf.newest(), shelf.knows(&hello.held));
        assert!(!known || held.revision <= newest.revision, "a controller forgot what it made");
        if !known && held.digest == newest.digest {
            // What the device holds is what the controller wants, whoever made it.
            let made = shelf.take_over(held, self.controller.epoch);
            self.truth.insert((device, made.epoch, made.revision), made);
        }
        let welcome = Welcome { version: 1, heartbeat_seconds: HEARTBEAT, time: 0, retry_seconds: 5 };
        far.connection.welcome(welcome).unwrap_or_else(|error| panic!("{error}"));
        far.offer = Some(Offer::new(held, hello.partial));
        self.controller.current[device] = Some(far.id);
        let is_old = |link: &Link| old.is_some() && link.far.as_ref().map(|far| far.id) == old;
        if let Some(old) = (0..self.links.len()).find(|other| *other != index && is_old(&self.links[*other])) {
            self.close_far(old);
        }
    }

    /// Sends what there is to say and what the wire has room for.
    fn pump(&mut self, index: usize) {
        let link = &mut self.links[index];
        let device = &self.devices[link.device];
        if let Some(near) = &mut link.near {
            if let Some((id, left)) = &mut near.log
                && near.connection.stream_credit(*id).is_some_and(|credit| credit > 0)
            {
                let bytes = vec![7; (*left).min(20_000)];
                let sent = near.connection.send_stream(*id, Channel::Stdout, &bytes).unwrap_or(0);
                *left -= sent;
                if *left == 0 {
                    near.connection.close_stream(*id, StreamEnd::Done).unwrap_or_else(|error| panic!("{error}"));
                    near.log = None;
                }
            }
            while link.up.has_room() && near.connection.has_output() {
                let output = near.connection.output(self.now + device.ahead);
                link.up.send(&output, self.now, &mut self.random);
            }
            assert!(near.connection.backlog() <= BACKLOG, "a device hoards what it has to say");
        }
        let shelf = &self.controller.shelves[link.device];
        if let Some(far) = &mut link.far {
            while let Some(offer) = &mut far.offer
                && far.connection.backlog() < 32 * 1024
                && let Ok(Some(message)) = offer.next(shelf)
            {
                if matches!(message, Message::ManifestBegin(_)) {
                    let held = offer.held();
                    let ours = held.revision == 0 || shelf.history.contains(&(held.epoch, held.revision));
                    assert!(ours, "a device is sent back in time: it holds what this controller never made");
                }
                send(&mut far.connection, message);
            }
            while link.down.has_room() && far.connection.has_output() {
                let output = far.connection.output(self.now);
                link.down.send(&output, self.now, &mut self.random);
            }
            assert!(far.connection.backlog() <= BACKLOG, "the controller hoards what it has to say");
        }
    }

    fn tick(&mut self, index: usize) {
        let link = &mut self.links[index];
        let ahead = self.devices[link.device].ahead;
        let near = link.near.as_mut().map(|near| near.connection.tick(self.now + ahead));
        let far = link.far.as_mut().map(|far| far.connection.tick(self.now));
        if let Some(Err(error)) = near {
            self.close_near(index, Some(&error));
        }
        if let Some(Err(error)) = far {
            self.must_have_reason(index, &error);
            self.close_far(index);
        }
    }

    /// A link that carries bytes must not be taken for dead once nothing goes wrong any more.
    fn must_have_reason(&self, index: usize, error: &LinkError) {
        let link = &self.links[index];
        let torn = link.up.severed || link.down.severed || link.near.is_none() || link.far.is_none();
        let calm = self.now > STORM + Duration::from_secs(20 * u64::from(HEARTBEAT));
        assert!(torn || !calm, "a link that works was given up: {error}");
    }

    fn close_near(&mut self, index: usize, error: Option<&LinkError>) {
        if let Some(error) = error {
            self.must_have_reason(index, error);
        }
        let link = &mut self.links[index];
        let Some(near) = link.near.take() else { return };
        link.up.end(self.now);
        let device = &mut self.devices[link.device];
        let ended = if near.told.is_some() { Ended::Lost } else { Ended::Failed };
        device.connect_at = Some(self.now + device.pace.next(ended, self.random.part()));
        device.link = None;
    }

    fn close_far(&mut self, index: usize) {
        let link = &mut self.links[index];
        let Some(far) = link.far.take() else { return };
        link.down.end(self.now);
        let current = &mut self.controller.current[link.device];
        if *current == Some(far.id) {
            *current = None;
        }
    }

    /// Something happens that nobody asked for, or that an operator did.
    fn fault(&mut self) {
        let index = self.random.below(self.devices.len() as u64) as usize;
        let link = (!self.links.is_empty()).then(|| self.random.below(self.links.len().max(1) as u64) as usize);
        match self.random.below(12) {
            0..=3 => self.change(index),
            4 | 5 => self.devices[index].live(&mut self.random),
            6 => self.lose(link),
            7 => self.crash_device(index),
            8 => self.crash_controller(),
            9 => self.devices[index].full = !self.devices[index].full,
            10 => self.devices[index].ahead += self.random.millis(120_000),
            _ => match self.random.below(4) {
                0 => self.controller.backup.clone_from(&self.controller.shelves),
                1 => self.consent(index),
                _ => self.open_log(link),
            },
        }
        if let Some(near) = self.devices[index].link.and_then(|link| self.links[link].near.as_mut()) {
            tell(near, &self.devices[index]);
        }
    }

    fn change(&mut self, index: usize) {
        let held = self.controller.change(index, &mut self.random);
        self.truth.insert((index, held.epoch, held.revision), held);
        self.look(index);
    }

    /// Tells the device's sessions that there is something new.
    fn look(&mut self, index: usize) {
        for link in self.links.iter_mut().filter(|link| link.device == index) {
            if let Some(offer) = link.far.as_mut().and_then(|far| far.offer.as_mut()) {
                offer.look();
            }
        }
    }

    /// A connection breaks: at one end, at both, or without a word.
    fn lose(&mut self, link: Option<usize>) {
        let Some(link) = link else { return };
        match self.random.below(4) {
            0 => self.close_near(link, None),
            1 => self.close_far(link),
            2 => (self.links[link].up.severed, self.links[link].down.severed) = (true, true),
            _ => self.links[link].down.severed = true,
        }
    }

    fn crash_device(&mut self, index: usize) {
        for link in self.links.iter_mut().filter(|link| link.device == index) {
            // A machine that lost its power closes nothing.
            link.near = None;
        }
        let back = self.now + self.random.millis(60_000);
        self.devices[index].crash(back, &mut self.random);
    }

    /// The controller is killed; now and then its disk is lost, too, and comes back from a backup.
    fn crash_controller(&mut self) {
        let silent = self.random.once_in(2);
        for index in 0..self.links.len() {
            // A machine that lost its power closes nothing.
            self.links[index].down.severed |= silent;
            self.close_far(index);
        }
        self.controller.up = false;
        self.controller.epoch = self.random.next().to_le_bytes();
        if self.random.once_in(3) {
            self.controller.shelves.clone_from(&self.controller.backup);
        }
        self.start_at = Some(self.now + self.random.millis(60_000));
    }

    /// An operator consents to overwrite what the device holds, where the controller does not know that.
    fn consent(&mut self, index: usize) {
        let offers = self.links.iter().filter(|link| link.device == index);
        let offers = offers.filter_map(|link| link.far.as_ref()?.offer.as_ref());
        let Some(held) = offers.filter(|offer| offer.is_stranger()).map(Offer::held).next() else { return };
        let made = self.controller.shelves[index].take_over(held, self.controller.epoch);
        self.truth.insert((index, made.epoch, made.revision), made);
        self.look(index);
    }

    fn open_log(&mut self, link: Option<usize>) {
        let Some(far) = link.and_then(|link| self.links[link].far.as_mut()) else { return };
        if far.connection.is_open() {
            let request = StreamRequest::Logs {
                pod: Uid::default(),
                container: heapless::String::new(),
                follow: true,
                tail: None,
                since_seconds: None,
                previous: false,
                timestamps: false,
            };
            // With enough of them open it is refused.
            far.connection.open_stream(request).ok();
        }
    }

    /// Nothing goes wrong from now on.
    fn make_peace(&mut self) {
        (self.start_at, self.controller.up) = (None, true);
        for index in 0..self.devices.len() {
            self.devices[index].full = false;
            // What was refused for want of room is sent again when it changes.
            self.change(index);
        }
    }

    fn check_rest(&mut self, index: usize) {
        let newest = self.controller.shelves[index].newest().unwrap_or(Held::NOTHING);
        let offers = self.links.iter().filter(|link| link.device == index);
        let stranger = offers.filter_map(|link| link.far.as_ref()?.offer.as_ref()).any(Offer::is_stranger);
        let device = &self.devices[index];
        if stranger {
            let ours = self.controller.shelves[index].history.contains(&(device.held().epoch, device.held().revision));
            assert!(!ours, "device {index} is left alone without reason");
        } else {
            // Two controllers may have made the same under the same number.
            let (held, wanted) = (device.held(), (newest.revision, newest.digest));
            assert_eq!((held.revision, held.digest), wanted, "device {index} did not come to the newest manifest");
        }
        assert_eq!(self.controller.seen[index], device.pods, "the status of device {index} did not come through");
    }
}

impl Controller {
    fn hear(&mut self, device: usize, update: StatusUpdate) {
        let seen = &mut self.seen[device];
        if update.full {
            seen.clear();
        }
        seen.retain(|uid, _| !update.removed.contains(uid));
        seen.extend(update.pods.into_iter().map(|pod| (pod.uid, pod)));
    }
}

fn send(connection: &mut Connection, message: impl Into<Message>) {
    connection.send(message).unwrap_or_else(|error| panic!("a message does not fit: {error}"));
}

/// Tells what has changed of the pods.
fn tell(near: &mut Near, device: &Device) {
    let Some(told) = &mut near.told else { return };
    for update in told.updates(device.pods.values().cloned()) {
        send(&mut near.connection, update);
    }
}

fn node(index: usize) -> NodeInfo {
    NodeInfo {
        name: format!("device-{index}").as_str().try_into().unwrap_or_default(),
        arch: heapless::String::new(),
        kernel: heapless::String::new(),
        os: heapless::String::new(),
        agent: heapless::String::new(),
        cpus: 1,
        memory_bytes: 0,
        boot: Uid::default(),
        address: None,
        user_namespaces: true,
    }
}
