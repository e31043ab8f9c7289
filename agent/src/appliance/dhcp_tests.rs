//! The client against a small DHCP server of the test, over a pair of virtual cards in network namespaces of their
//! own. Needs root.

use std::process::Command;
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::*;

/// What the server is to do with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Grant,
    Refuse,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs something in a thread with a network namespace of its own. None: that needs root.
fn in_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<Option<T>> {
    std::thread::spawn(|| match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        Ok(()) => Some(work()),
        Err(error) => {
            println!("skipped: a network namespace needs root: {error}");
            None
        }
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Answers requests, each with what its kind asks for and in the next mood, until it is over. Gives their kinds.
async fn serve(moods: &[Mood], mut over: oneshot::Receiver<()>) -> Vec<MessageType> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).await.unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"server")).unwrap();
    let mut last = None;
    let mut kinds = Vec::new();
    loop {
        let mut buffer = [0; MAX_MESSAGE];
        let (length, _) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received.unwrap(),
            _ = &mut over => return kinds,
        };
        // Nothing of this may disturb the client.
        for noise in [&b"noise"[..], &buffer[..length], &[0xff; 300]] {
            socket.send_to(noise, (Ipv4Addr::BROADCAST, CLIENT_PORT)).await.unwrap();
        }
        let request = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
        let kind = request.opts().msg_type().unwrap();
        // The kernel drops answers until it has noticed that the other card is up: what is asked again is nothing new.
        let again = last == Some(request.xid()) || (kind, kinds.last()) == (MessageType::Discover, Some(&kind));
        last = Some(request.xid());
        if !again {
            kinds.push(kind);
        }
        let mood = moods.get(kinds.len() - 1).unwrap_or(&Mood::Grant);
        let answer = match (kind, mood) {
            (MessageType::Discover, _) => MessageType::Offer,
            (_, Mood::Grant) => MessageType::Ack,
            (_, Mood::Refuse) => MessageType::Nak,
        };
        let mut reply = Message::default();
        reply.set_opcode(Opcode::BootReply).set_xid(request.xid()).set_chaddr(request.chaddr());
        reply.set_yiaddr(Ipv4Addr::new(10, 99, 0, 15));
        for option in [
            DhcpOption::MessageType(answer),
            DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 99, 0, 1)),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![Ipv4Addr::new(10, 99, 0, 1)]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 99, 0, 3)]),
            DhcpOption::AddressLeaseTime(3600),
        ] {
            reply.opts_mut().insert(option);
        }
        let mut bytes = Vec::new();
        reply.encode(&mut Encoder::new(&mut bytes)).unwrap();
        socket.send_to(&bytes, (Ipv4Addr::BROADCAST, CLIENT_PORT)).await.unwrap();
    }
}

/// Runs client and server until the client has used as many leases as are asked for. Gives what it did and heard.
fn play(leases: usize, before: Option<Prefix>, moods: &'static [Mood]) -> Option<(Vec<String>, Vec<MessageType>)> {
    let (client_ready, client_thread) = mpsc::channel();
    let (cards_ready, cards) = mpsc::channel();
    let (client_done, over) = oneshot::channel();
    let client = in_namespace(move || {
        client_ready.send(rustix::thread::gettid()).unwrap();
        cards.recv().unwrap();
        netlink::set_up("lo").unwrap();
        netlink::set_up("client").unwrap();
        assert_eq!(netlink::first_interface().unwrap().as_deref(), Some("client"));
        if let Some(before) = before {
            netlink::add_address("client", before).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        let done = std::cell::RefCell::new(Vec::new());
        let enough = tokio::sync::Notify::new();
        let apply = |setting: Setting<'_>| {
            done.borrow_mut().push(match &setting {
                Setting::Take(lease) => format!("take {}/{}", lease.prefix.address, lease.prefix.length),
                Setting::Drop(prefix) => format!("drop {}/{}", prefix.address, prefix.length),
            });
            let taken = matches!(setting, Setting::Take(_));
            super::super::network::apply("client", &resolv_conf, setting);
            if taken && done.borrow().iter().filter(|done| done.starts_with("take")).count() == leases {
                enough.notify_one();
            }
        };
        runtime().block_on(async {
            tokio::select! {
                () = run("client", "kiln-7", &apply) => {}
                () = enough.notified() => {}
            }
        });
        let address = Prefix { address: Ipv4Addr::new(10, 99, 0, 15), length: 24 };
        assert_eq!(netlink::addresses("client").unwrap(), [address]);
        let route = Command::new("ip").args(["route", "show", "default"]).output().unwrap();
        assert!(String::from_utf8_lossy(&route.stdout).starts_with("default via 10.99.0.1 dev client"));
        assert_eq!(std::fs::read_to_string(&resolv_conf).unwrap(), "nameserver 10.99.0.3\n");
        done.into_inner()
    });
    let server = in_namespace(move || {
        let client = client_thread.recv().ok()?;
        ip(&format!("link add server type veth peer name client netns {}", client.as_raw_nonzero()));
        ip("address add 10.99.0.1/24 dev server");
        ip("link set server up");
        runtime().block_on(async {
            let serving = tokio::task::LocalSet::new();
            serving
                .run_until(async {
                    let served = tokio::task::spawn_local(serve(moods, over));
                    tokio::task::yield_now().await;
                    cards_ready.send(()).unwrap();
                    Some(served.await.unwrap())
                })
                .await
        })
    });
    let done = client.join().unwrap();
    drop(client_done);
    let kinds = server.join().unwrap();
    Some((done?, kinds??))
}

#[test]
fn a_board_without_an_address_gets_one() {
    let Some((done, kinds)) = play(1, None, &[Mood::Grant, Mood::Grant]) else { return };
    assert_eq!(done, ["take 10.99.0.15/24"]);
    assert_eq!(kinds, [MessageType::Discover, MessageType::Request]);
}

#[test]
fn a_new_agent_keeps_the_address_of_the_old_one() {
    let before = Prefix { address: Ipv4Addr::new(10, 99, 0, 15), length: 24 };
    let Some((done, kinds)) = play(1, Some(before), &[Mood::Grant]) else { return };
    assert_eq!(done, ["take 10.99.0.15/24"], "the address is never taken away in between");
    assert_eq!(kinds, [MessageType::Request]);
}

#[test]
fn an_address_that_is_refused_is_given_up_for_a_new_one() {
    let before = Prefix { address: Ipv4Addr::new(10, 98, 0, 7), length: 24 };
    let moods = &[Mood::Refuse, Mood::Grant, Mood::Grant];
    let Some((done, kinds)) = play(1, Some(before), moods) else { return };
    assert_eq!(done, ["drop 10.98.0.7/24", "take 10.99.0.15/24"]);
    assert_eq!(kinds, [MessageType::Request, MessageType::Discover, MessageType::Request]);
}

#[test]
fn a_grant_that_makes_no_sense_is_none() {
    let grant = |address: [u8; 4], mask: [u8; 4], seconds| {
        let mut message = Message::default();
        message.set_yiaddr(address);
        message.opts_mut().insert(DhcpOption::ServerIdentifier([10, 0, 0, 1].into()));
        message.opts_mut().insert(DhcpOption::SubnetMask(mask.into()));
        message.opts_mut().insert(DhcpOption::AddressLeaseTime(seconds));
        lease(&message)
    };
    assert_eq!(grant([0, 0, 0, 0], [255, 0, 0, 0], 60), None);
    assert_eq!(grant([224, 0, 0, 1], [255, 0, 0, 0], 60), None);
    assert_eq!(grant([10, 0, 0, 7], [255, 0, 255, 0], 60), None);
    assert_eq!(lease(&Message::default()), None);
    let short = grant([10, 0, 0, 7], [255, 255, 0, 0], 0).unwrap();
    assert_eq!((short.prefix.length, short.length), (16, SHORTEST_LEASE));
    assert!(short.renew >= SHORTEST_LEASE / 2 && short.renew <= short.rebind && short.rebind <= short.length);
}
