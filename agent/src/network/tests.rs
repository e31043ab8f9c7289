//! Whole networks against the real kernel, each test in a network namespace of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skeg_protocol::Container;
use skeg_protocol::manifest::{Port, ServiceKind, ServicePort, Subnet, TargetPort};

use super::*;
use crate::netlink::inside;

/// How long a connection that is to fail may try.
const SHORT: Duration = Duration::from_millis(150);
/// How long one that is to succeed may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// Puts this thread into a network namespace of its own with a loopback; says whether it could.
pub fn alone() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    route::ask(route::set_up(route::index("lo").unwrap())).unwrap();
    if let Err(error) = Socket::open(NETFILTER, 0) {
        println!("skipped: this kernel has no packet rules: {error}");
        return false;
    }
    true
}

/// A device with its pods.
pub struct Device {
    folder: tempfile::TempDir,
    pub networks: Networks,
    pods: BTreeMap<Uid, (Arc<Pod>, OwnedFd)>,
}

fn uid(number: u16) -> Uid {
    let mut bytes = [7; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    Uid(bytes)
}

pub fn pod(number: u16, name: &str, networks: &[&str]) -> Pod {
    Pod {
        uid: uid(number),
        namespace: "shop".try_into().unwrap(),
        name: name.try_into().unwrap(),
        labels: vec![("app".to_owned(), name.split('-').next().unwrap_or(name).to_owned())],
        networks: networks.iter().map(|name| attachment(name)).collect(),
        containers: vec![Container { name: "main".try_into().unwrap(), ..Container::default() }],
        ..Pod::default()
    }
}

fn attachment(network: &str) -> Attachment {
    Attachment { network: network.try_into().unwrap(), ..Attachment::default() }
}

pub fn network(name: &str, internal: bool) -> manifest::Network {
    let (namespace, name) = ("shop".try_into().unwrap(), name.try_into().unwrap());
    manifest::Network { namespace, name, internal, ..manifest::Network::default() }
}

fn port(inside: u16, host: u16, protocol: Protocol) -> Port {
    Port { container_port: inside, host_port: Some(host), protocol, ..Port::default() }
}

fn service(name: &str, port: u16, target: u16) -> Service {
    Service {
        namespace: "shop".try_into().unwrap(),
        name: name.try_into().unwrap(),
        kind: ServiceKind::ClusterIp(vec!["10.96.0.10".parse().unwrap()]),
        selector: vec![("app".to_owned(), name.to_owned())],
        ports: vec![ServicePort {
            name: Label::new(),
            protocol: Protocol::Tcp,
            port,
            target: TargetPort::Number(target),
            node_port: None,
        }],
        affinity_seconds: None,
        external_local: false,
        publish_not_ready: false,
    }
}

impl Device {
    pub fn new(manifest: &Manifest) -> Device {
        let folder = tempfile::tempdir().unwrap();
        let networks = Networks::open(&PodNetwork::default(), folder.path().to_owned()).unwrap();
        networks.want(manifest);
        Device { folder, networks, pods: BTreeMap::new() }
    }

    fn plug(&mut self, pod: Pod) -> Result<(), NetworkError> {
        let (pod, namespace) = (Arc::new(pod), skeg_runtime::new_network().unwrap());
        self.networks.plug(&pod, Some(namespace.as_fd()))?;
        self.pods.insert(pod.uid, (pod, namespace));
        Ok(())
    }

    fn try_add(&mut self, pod: Pod) -> Result<(), NetworkError> {
        self.plug(pod)?;
        self.all_ready();
        Ok(())
    }

    pub fn add(&mut self, pod: Pod) -> IpAddr {
        let uid = pod.uid;
        self.try_add(pod).unwrap();
        self.networks.ips(uid)[0]
    }

    fn all_ready(&self) {
        self.ready(self.pods.keys().copied().collect());
    }

    fn ready(&self, pods: BTreeSet<Uid>) {
        if self.networks.observe(pods) {
            self.networks.settle().unwrap();
        }
    }

    fn within<T: Send>(&self, number: u16, work: impl FnOnce() -> T + Send) -> T {
        inside(self.pods[&uid(number)].1.as_fd(), work).unwrap()
    }

    /// A server in a pod that answers each connection with its own number and whom it sees.
    fn serve(&self, number: u16, port: u16) {
        let listener = self.within(number, || TcpListener::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let peer = client.peer_addr().unwrap().ip().to_canonical();
                writeln!(client, "{number} {peer}").ok();
            }
        });
    }
}

/// What a server says.
fn ask(address: IpAddr, port: u16, patience: Duration) -> std::io::Result<String> {
    let mut answer = String::new();
    TcpStream::connect_timeout(&SocketAddr::from((address, port)), patience)?.read_to_string(&mut answer)?;
    Ok(answer.trim().to_owned())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A second machine, at the other end of a cable: this device is 192.0.2.1 and it is 192.0.2.2.
fn neighbour() -> OwnedFd {
    let other = skeg_runtime::new_network().unwrap();
    let socket = Socket::open(ROUTE, 0).unwrap();
    let bridge = route::new_bridge("uplink", [2, 0, 0, 0, 0, 1], 1500);
    socket.ask(bridge).unwrap();
    let uplink = route::index("uplink").unwrap();
    let network = std::os::fd::AsRawFd::as_raw_fd(&other);
    let veth = route::Veth { name: "cable", bridge: uplink, peer: "eth0", network, mac: [2, 0, 0, 0, 0, 2], mtu: 1500 };
    socket.ask(route::new_veth(&veth)).unwrap();
    let range = |last: u8| route::Range { address: IpAddr::from([192, 0, 2, last]), length: 24 };
    socket.ask(route::add_address(uplink, range(1))).unwrap();
    let everything = route::Range { address: ip("0.0.0.0"), length: 0 };
    socket.ask(route::route(everything, uplink, Some(ip("192.0.2.2")), route::DHCP)).unwrap();
    let set_up = || {
        let card = route::index("eth0").unwrap();
        route::ask(route::set_up(card)).unwrap();
        route::ask(route::add_address(card, range(2))).unwrap();
    };
    inside(other.as_fd(), set_up).unwrap();
    other
}

fn bridges() -> Vec<String> {
    let links = route::links(&Socket::open(ROUTE, 0).unwrap()).unwrap();
    links.into_iter().map(|link| link.name).filter(|name| name.starts_with("sk")).collect()
}

#[test]
fn pods_reach_their_own_networks_and_no_others() {
    if !alone() {
        return;
    }
    let networks = vec![network("back", true), network("front", false)];
    let mut device = Device::new(&Manifest { networks, ..Manifest::default() });
    let outside = neighbour();
    let web = device.add(pod(1, "web", &["front"]));
    let api = device.add(pod(2, "api", &["front", "back"]));
    let db = device.add(pod(3, "db", &["back"]));
    let own = device.add(pod(4, "own", &[]));
    for number in 1..=4 {
        device.serve(number, 80);
    }
    let api_back = device.networks.ips(uid(2)).into_iter().filter(|ip| ip.is_ipv4()).nth(1).unwrap();
    assert_eq!(device.within(1, || ask(api, 80, LONG).unwrap()), format!("2 {web}"));
    assert_eq!(device.within(2, || ask(db, 80, LONG).unwrap()), format!("3 {api_back}"));
    let v6 = device.networks.ips(uid(3)).into_iter().find(|ip| ip.is_ipv6());
    if let Some(v6) = v6 {
        assert!(device.within(2, || ask(v6, 80, LONG).unwrap()).starts_with("3 fd73:"));
    }
    for (from, to) in [(1, db), (3, web), (4, web), (1, own), (3, own)] {
        assert!(device.within(from, || ask(to, 80, SHORT)).is_err(), "{from} reaches {to}");
    }
    // Out, with the device's address; back only by what is published; an internal network not at all.
    let there = inside(outside.as_fd(), || TcpListener::bind("192.0.2.2:80").unwrap()).unwrap();
    let out = |number| device.within(number, || TcpStream::connect_timeout(&"192.0.2.2:80".parse().unwrap(), SHORT));
    let going = out(1).unwrap();
    assert_eq!(there.accept().unwrap().1.ip(), ip("192.0.2.1"));
    drop(going);
    assert!(out(4).is_ok() && out(3).is_err());
    let route_back = || {
        let everything = route::Range { address: ip("0.0.0.0"), length: 0 };
        let index = route::index("eth0").unwrap();
        route::ask(route::route(everything, index, Some(ip("192.0.2.1")), route::DHCP)).unwrap();
        ask(web, 80, SHORT)
    };
    assert!(inside(outside.as_fd(), route_back).unwrap().is_err(), "a pod is reached from outside");
    device.pods.clear();
    for number in 1..=4 {
        device.networks.unplug(uid(number), false);
    }
    device.networks.want(&Manifest::default());
    device.networks.sweep();
    assert!(bridges().iter().all(|name| name == "skeg0" || name.starts_with("sk-")), "{:?}", bridges());
    device.networks.close();
    assert!(bridges().iter().all(|name| name.starts_with("sk-")), "{:?}", bridges());
    assert!(nftables::handle(&Socket::open(NETFILTER, 0).unwrap()).is_err());
}

#[test]
fn published_ports_are_reached_from_everywhere_and_show_who_asks() {
    if !alone() {
        return;
    }
    let mut device = Device::new(&Manifest { networks: vec![network("front", false)], ..Manifest::default() });
    let outside = neighbour();
    let mut web = pod(1, "web", &[]);
    let at_loopback = Port { host_ip: Some(ip("127.0.0.1")), ..port(80, 8081, Protocol::Tcp) };
    web.containers[0].ports = vec![port(80, 8080, Protocol::Tcp), at_loopback, port(53, 8053, Protocol::Udp)];
    let web = device.add(web);
    let other = device.add(pod(2, "other", &["front"]));
    device.serve(1, 80);
    assert_eq!(inside(outside.as_fd(), || ask(ip("192.0.2.1"), 8080, LONG).unwrap()).unwrap(), "1 192.0.2.2");
    assert!(inside(outside.as_fd(), || ask(ip("192.0.2.1"), 8081, SHORT)).unwrap().is_err());
    assert!(ask(ip("127.0.0.1"), 8080, LONG).unwrap().starts_with("1 10.223."));
    assert!(ask(ip("127.0.0.1"), 8081, LONG).unwrap().starts_with("1 10.223."));
    assert!(ask(ip("192.0.2.1"), 8080, LONG).unwrap().starts_with("1 192.0.2.1"));
    assert_eq!(device.within(2, || ask(ip("192.0.2.1"), 8080, LONG).unwrap()), format!("1 {other}"));
    assert!(device.within(1, || ask(ip("192.0.2.1"), 8080, LONG).unwrap()).starts_with("1 10.223."), "itself");
    assert!(device.within(2, || ask(ip("127.0.0.1"), 8081, SHORT)).is_err());
    // UDP, and what goes on after the pod was replaced.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect("127.0.0.1:8053").unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    let ask_udp = |device: &Device, number| {
        let server = device.within(number, || UdpSocket::bind("0.0.0.0:53").unwrap());
        server.set_read_timeout(Some(LONG)).unwrap();
        client.send(b"question").unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.send_to(&number.to_be_bytes(), from).unwrap();
        let mut answer = [0; 2];
        client.recv(&mut answer).unwrap();
        assert_eq!(u16::from_be_bytes(answer), number);
    };
    ask_udp(&device, 1);
    device.pods.remove(&uid(1));
    device.all_ready();
    device.networks.unplug(uid(1), false);
    let mut next = pod(3, "web-2", &[]);
    next.containers[0].ports = vec![port(53, 8053, Protocol::Udp)];
    assert!(device.add(next) != web);
    ask_udp(&device, 3);
}

#[test]
fn what_can_not_be_published_is_refused_with_the_reason() {
    if !alone() {
        return;
    }
    let mut device = Device::new(&Manifest::default());
    let with_port = |number, port: Port| {
        let mut pod = pod(number, &format!("pod{number}"), &[]);
        pod.containers[0].ports = vec![port];
        pod
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    let error = device.try_add(with_port(1, port(80, taken, Protocol::Tcp))).unwrap_err();
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    assert_eq!(error.reason(), "HostPortConflict");
    device.add(with_port(2, port(80, 8080, Protocol::Tcp)));
    let error = device.try_add(with_port(3, port(80, 8080, Protocol::Tcp))).unwrap_err();
    assert!(error.to_string().contains("pod shop/pod2"), "{error}");
    let far = Port { host_ip: Some(ip("198.51.100.1")), ..port(80, 8081, Protocol::Tcp) };
    let error = device.try_add(with_port(4, far)).unwrap_err();
    assert!(matches!(error, NetworkError::NotOurs { .. }), "{error}");
    // One that no longer gets connections gives way.
    device.ready(BTreeSet::new());
    device.add(with_port(5, port(80, 8080, Protocol::Tcp)));
    let error = device.try_add(pod(6, "lost", &["nowhere"])).unwrap_err();
    assert_eq!(error.to_string(), "there is no network shop/nowhere");
}

#[test]
fn a_range_that_the_device_has_elsewhere_is_refused() {
    if !alone() {
        return;
    }
    drop(neighbour());
    let subnets = vec![Subnet { address: ip("192.0.2.128"), prefix: 25, gateway: None }];
    let front = manifest::Network { subnets, ..network("front", false) };
    let mut device = Device::new(&Manifest { networks: vec![front], ..Manifest::default() });
    let error = device.try_add(pod(1, "web", &["front"])).unwrap_err();
    assert!(error.to_string().contains("192.0.2.0/24 on uplink"), "{error}");
}

#[test]
fn services_spread_over_ready_pods_and_refuse_without_one() {
    if !alone() {
        return;
    }
    let mut web = service("web", 80, 8080);
    web.ports[0].node_port = Some(30080);
    let sticky = Service {
        kind: ServiceKind::ClusterIp(vec![ip("10.96.0.11")]),
        name: "sticky".try_into().unwrap(),
        affinity_seconds: Some(10800),
        ..service("web", 80, 8080)
    };
    let chosen = Service { kind: ServiceKind::ClusterIp(Vec::new()), ..service("auto", 80, 8080) };
    let chosen = Service { selector: vec![("app".to_owned(), "web".to_owned())], ..chosen };
    let mut device = Device::new(&Manifest { services: vec![chosen, sticky, web], ..Manifest::default() });
    let outside = neighbour();
    let client = device.add(pod(1, "client", &[]));
    let virtual_ip = ip("10.96.0.10");
    let refused = device.within(1, || ask(virtual_ip, 80, LONG)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for number in 2..=4 {
        device.add(pod(number, &format!("web-{number}"), &[]));
        device.serve(number, 8080);
    }
    let answers = |device: &Device, address: IpAddr, port| -> BTreeSet<String> {
        let ask = || (0..40).map(|_| ask(address, port, LONG).unwrap()).collect();
        device.within(1, ask)
    };
    let all = |numbers: &[u16]| numbers.iter().map(|number| format!("{number} {client}")).collect::<BTreeSet<_>>();
    assert_eq!(answers(&device, virtual_ip, 80), all(&[2, 3, 4]), "the source is kept");
    assert_eq!(answers(&device, ip("10.96.0.11"), 80).len(), 1);
    assert_eq!(answers(&device, ip("192.0.2.1"), 30080), all(&[2, 3, 4]));
    let from_outside = inside(outside.as_fd(), || ask(ip("192.0.2.1"), 30080, LONG).unwrap()).unwrap();
    assert!(from_outside.ends_with(" 192.0.2.2"), "{from_outside}");
    let auto = {
        let state = lock(&device.networks.state);
        services::virtuals(&state, &state.services[0])[0]
    };
    assert!(ask(auto, 80, LONG).is_ok(), "the device itself reaches {auto}");
    assert!(device.within(2, || ask(virtual_ip, 80, LONG)).is_ok());
    device.ready(BTreeSet::from([uid(1), uid(3)]));
    assert_eq!(answers(&device, virtual_ip, 80), all(&[3]));
    let closed = device.within(1, || ask(virtual_ip, 81, LONG)).unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused, "a port that the service does not have");
}

#[test]
fn a_new_agent_finds_everything_and_breaks_no_connection() {
    if !alone() {
        return;
    }
    let manifest = Manifest { services: vec![service("web", 80, 8080)], ..Manifest::default() };
    let mut device = Device::new(&manifest);
    device.add(pod(1, "client", &[]));
    let before = device.add(pod(2, "web", &[]));
    let listener = device.within(2, || TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut open = device.within(1, || TcpStream::connect("10.96.0.10:80").unwrap());
    let mut served = listener.accept().unwrap().0;
    let handle = || nftables::handle(&Socket::open(NETFILTER, 0).unwrap()).unwrap();
    let old = handle();
    // Nothing is said to the old one: it was killed.
    device.networks = Networks::open(&PodNetwork::default(), device.folder.path().to_owned()).unwrap();
    device.networks.want(&manifest);
    device.networks.observe(device.pods.keys().copied().collect());
    device.pods.keys().for_each(|uid| device.networks.expect(*uid));
    for (number, (pod, namespace)) in (0..).zip(device.pods.values()) {
        device.networks.settle().unwrap();
        device.networks.sweep();
        assert_eq!(handle(), old, "the rules changed before all {number} pods were known");
        device.networks.plug(pod, Some(namespace.as_fd())).unwrap();
    }
    assert_eq!(device.networks.ips(uid(2))[0], before);
    open.write_all(b"still here").unwrap();
    let mut heard = [0; 10];
    served.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still here");
    device.within(1, || TcpStream::connect("10.96.0.10:80").unwrap());
}

#[test]
fn rules_that_somebody_else_removes_come_back() {
    if !alone() {
        return;
    }
    let mut device = Device::new(&Manifest { services: vec![service("web", 80, 8080)], ..Manifest::default() });
    device.add(pod(1, "client", &[]));
    device.add(pod(2, "web", &[]));
    device.serve(2, 8080);
    let networks = Arc::new(device.networks);
    let runtime = {
        // Threads that block must be in this test's network, too.
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let enter = move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(home.as_fd(), kind).unwrap();
        };
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(enter).build().unwrap()
    };
    let ours = nftables::handle(&Socket::open(NETFILTER, 0).unwrap()).unwrap();
    runtime.block_on(async {
        let watch = tokio::spawn(watch_rules(Arc::clone(&networks)));
        tokio::task::yield_now().await;
        let other = Socket::open(NETFILTER, 0).unwrap();
        nftables::remove(&other).unwrap();
        loop {
            if nftables::handle(&other).is_ok_and(|handle| handle != ours) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        watch.abort();
    });
    let namespace = &device.pods[&uid(1)].1;
    assert!(inside(namespace.as_fd(), || ask(ip("10.96.0.10"), 80, LONG)).unwrap().is_ok());
}

/// A backend that is told to end goes on with what reached it, as a well-behaved server does.
fn serve_until(listener: TcpListener, ends: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    loop {
        let last = ends.load(Ordering::SeqCst);
        while let Ok((mut client, _)) = listener.accept() {
            client.write_all(b"ok").unwrap();
        }
        if last {
            return;
        }
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)],
            Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 }),
        )
        .ok();
    }
}

/// A backend: its pod, what tells it to end, and its server.
type Backend = (u16, Arc<AtomicBool>, std::thread::JoinHandle<()>);

fn begin_backend(device: &mut Device, number: u16) -> Backend {
    device.plug(pod(number, &format!("web-{number}"), &[])).unwrap();
    let listener = device.within(number, || TcpListener::bind("0.0.0.0:8080").unwrap());
    let ends = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ends);
    (number, ends, std::thread::spawn(move || serve_until(listener, &told)))
}

/// Does for each what a pod's worker does: out of the service, told to end, gone.
fn end_backends(device: &mut Device, backends: Vec<Backend>) {
    let leaving: BTreeSet<Uid> = backends.iter().map(|(number, ..)| uid(*number)).collect();
    device.networks.observe(device.pods.keys().copied().filter(|uid| !leaving.contains(uid)).collect());
    std::thread::scope(|scope| {
        for (number, ends, server) in backends {
            let networks = &device.networks;
            scope.spawn(move || {
                networks.drain(uid(number));
                ends.store(true, Ordering::SeqCst);
                server.join().unwrap();
                networks.unplug(uid(number), false);
            });
        }
    });
    device.pods.retain(|uid, _| !leaving.contains(uid));
}

/// Two hundred replacements; `SKEG_REPLACEMENTS=1000` makes a thousand.
#[test]
fn replacements_of_a_backend_fail_no_request() {
    let replacements = std::env::var("SKEG_REPLACEMENTS").map_or(200, |count| count.parse::<u16>().unwrap());
    if !alone() {
        return;
    }
    let mut device = Device::new(&Manifest { services: vec![service("web", 80, 8080)], ..Manifest::default() });
    device.add(pod(1, "client", &[]));
    let done = AtomicBool::new(false);
    let (begun, client) = (AtomicBool::new(false), device.pods[&uid(1)].1.try_clone().unwrap());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            inside(client.as_fd(), || {
                let mut count = 0u32;
                while !done.load(Ordering::SeqCst) {
                    if begun.load(Ordering::SeqCst) {
                        assert_eq!(ask(ip("10.96.0.10"), 80, LONG).unwrap(), "ok", "request {count}");
                        count += 1;
                    }
                    // A pace: the kernel remembers each connection for minutes, and has room for so many.
                    std::thread::sleep(Duration::from_millis(1));
                }
                count
            })
        });
        let mut old = Vec::new();
        for round in 0..=replacements / 5 {
            let next: Vec<_> = (0..5).map(|place| begin_backend(&mut device, 2 + round * 5 + place)).collect();
            device.all_ready();
            begun.store(true, Ordering::SeqCst);
            end_backends(&mut device, std::mem::replace(&mut old, next));
            if load.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
        let count = load.join().unwrap().unwrap();
        println!("{count} requests over {replacements} backends, none failed");
        assert!(count > 100);
    });
}

/// What a pod finds under a name, IPv4 only.
fn found(device: &Device, number: u16, name: &str) -> BTreeSet<IpAddr> {
    match device.networks.look_up(device.networks.ips(uid(number))[0], name) {
        dns::names::Found::Addresses(found) => found.into_iter().filter(IpAddr::is_ipv4).collect(),
        _ => BTreeSet::new(),
    }
}

#[test]
fn names_resolve_only_where_they_should() {
    if !alone() {
        return;
    }
    let headless = Service { kind: ServiceKind::Headless, ..service("queue", 80, 8080) };
    let services = vec![headless, service("site", 80, 8080)];
    let networks = vec![network("back", true), network("front", false)];
    let mut device = Device::new(&Manifest { services, networks, ..Manifest::default() });
    let named = |number, name: &str, places: &[(&str, &[&str])]| {
        let mut pod = pod(number, name, &[]);
        let place = |(network, aliases): &(&str, &[&str])| Attachment {
            aliases: aliases.iter().map(|alias| (*alias).try_into().unwrap()).collect(),
            ..attachment(network)
        };
        pod.networks = places.iter().map(place).collect();
        pod
    };
    // As compose-shop.yml has it.
    let web = device.add(named(1, "web-1", &[("front", &["web"])]));
    for number in [2, 3] {
        device.add(named(number, &format!("api-{number}"), &[("back", &["api", "app"]), ("front", &["api"])]));
    }
    let db = device.add(named(4, "db-1", &[("back", &["db"])]));
    device.add(named(5, "cache-1", &[("back", &["cache"])]));
    let place =
        |number, place: usize| device.networks.ips(uid(number)).into_iter().filter(IpAddr::is_ipv4).nth(place).unwrap();
    let one = |address| BTreeSet::from([address]);
    assert_eq!(found(&device, 1, "api"), BTreeSet::from([place(2, 1), place(3, 1)]));
    assert_eq!(found(&device, 4, "api"), BTreeSet::from([place(2, 0), place(3, 0)]));
    assert_eq!((found(&device, 4, "app").len(), found(&device, 1, "app").len()), (2, 0));
    assert_eq!(found(&device, 2, "db"), one(db));
    assert_eq!(found(&device, 2, "db.shop.svc.cluster.local"), one(db), "by the search domain");
    for (from, name) in [(1, "db"), (1, "cache"), (4, "web"), (1, "db.shop.svc.cluster.local"), (1, "db-1")] {
        assert_eq!(found(&device, from, name), BTreeSet::new(), "{from} knows {name}");
    }
    // Kubernetes' names, in the device's own network.
    let mut queue = pod(6, "queue-0", &[]);
    queue.subdomain = Some("queue".try_into().unwrap());
    let queue = device.add(queue);
    device.add(pod(7, "site-1", &[]));
    assert_eq!(found(&device, 7, "queue.shop.svc.cluster.local"), one(queue));
    assert_eq!(found(&device, 7, "queue-0.queue.shop.svc.cluster.local"), one(queue));
    assert_eq!(found(&device, 7, "site.shop.svc.cluster.local"), one(ip("10.96.0.10")));
    let dashed = queue.to_string().replace('.', "-");
    assert_eq!(found(&device, 7, &format!("{dashed}.shop.pod.cluster.local")), one(queue));
    let look_up = |client: IpAddr, name: &str| device.networks.look_up(client, name);
    let reverse = |address: IpAddr| match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(_) => unreachable!("only IPv4 is asked for here"),
    };
    use dns::names::Found;
    let full = Found::Name("queue-0.queue.shop.svc.cluster.local".to_owned());
    assert_eq!(look_up(queue, &reverse(queue)), full);
    assert_eq!(look_up(web, &reverse(queue)), Found::Nothing, "its name is not for other networks");
    assert_eq!(look_up(web, "example.com"), Found::Foreign);
    assert_eq!(look_up(web, "nobody.shop.svc.cluster.local"), Found::Nothing);
    device.ready(device.pods.keys().copied().filter(|pod| *pod != uid(6)).collect());
    assert_eq!(found(&device, 7, "queue.shop.svc.cluster.local"), BTreeSet::new(), "it is not ready");
}
