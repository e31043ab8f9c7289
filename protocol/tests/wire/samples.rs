//! One message of each kind with every field set to something telling. It owns the samples only; what is done
//! with them is the tests' own.

use skeg_protocol::id::{Digest, Uid};
use skeg_protocol::manifest::{
    Attachment, BlockIo, Condition, Container, DataKind, DataSource, Dependency, Device, Dns, DnsPolicy, DownwardFile,
    DownwardValue, EmptyDir, EnvFrom, EnvValue, EnvVar, Handler, HostAlias, HostPathKind, HttpGet, Image, ImageSource,
    KeyPath, Lifecycle, Limits, Owner, Pod, PodField, Port, Probe, Probes, Projection, Protocol, PullPolicy, Requests,
    ResourceField, ResourceName, RestartPolicy, Security, Ulimit, Volume, VolumeMount, VolumeSource,
};
use skeg_protocol::message::{
    Base, Channel, GetItems, GetStatus, Goodbye, Heartbeat, Held, Hello, ImageRequest, Items, LocalPod, ManifestBegin,
    ManifestPiece, ManifestRefused, Message, NodeInfo, NodeStatus, Partial, PullSecret, PullSecrets, Reject,
    RejectCode, StatusUpdate, StreamClose, StreamCredit, StreamData, StreamEnd, StreamOpen, StreamRequest,
    StreamResize, VERSIONS, Welcome,
};
use skeg_protocol::status::{
    ConditionKind, ContainerState, ContainerStatus, Phase, PodCondition, PodStatus, Termination, reason,
};

/// Makes a bounded string; samples fit.
fn short<const N: usize>(text: &str) -> heapless::String<N> {
    text.try_into().unwrap()
}

/// A Hello of an ordinary board.
pub(crate) fn hello() -> Hello {
    Hello {
        versions: VERSIONS,
        join: Some(short("abcdefghijklmnopqrstuvwxyz012345")),
        node: NodeInfo {
            name: short("kiln-7"),
            arch: short("arm64"),
            kernel: short("6.1.0-38-arm64"),
            os: short("Debian GNU/Linux 12 (bookworm)"),
            agent: short("0.1.0"),
            cpus: 4,
            memory_bytes: 1 << 30,
            boot: Uid([0x11; 16]),
            address: Some([192, 0, 2, 7].into()),
            user_namespaces: true,
        },
        held: held(),
        partial: Some(Partial { revision: 301, check: [0x55; 8], received: 16 }),
    }
}

/// What a device with one manifest holds.
pub(crate) fn held() -> Held {
    Held { revision: 300, digest: Digest([0xab; 32]), epoch: [0x44; 8] }
}

/// A pod that uses every field.
pub(crate) fn pod() -> Pod {
    Pod {
        uid: Uid([0x22; 16]),
        namespace: short("default"),
        name: short("web-0"),
        host_network: false,
        restart_policy: RestartPolicy::OnFailure,
        termination_grace_seconds: 30,
        init_containers: vec![Container { name: short("prepare"), ..Container::default() }],
        containers: vec![container()],
        volumes: volumes(),
        image_pull_secrets: vec![short("registry")],
        host_users: true,
        labels: vec![("app".to_owned(), "web".to_owned())],
        annotations: vec![("example.org/note".to_owned(), "hello".to_owned())],
        owner: Some(Owner { uid: Uid([0x33; 16]), index: Some(2) }),
        share_processes: true,
        active_deadline_seconds: Some(600),
        networks: vec![Attachment {
            network: short("front"),
            aliases: vec![short("shop")],
            ipv4: Some([172, 29, 7, 9].into()),
            ipv6: Some([0xfd00, 0, 0, 0, 0, 0, 0, 9].into()),
            mac: Some([2, 0, 0, 0, 0, 9]),
        }],
        no_network: false,
        hostname: Some(short("web")),
        subdomain: Some(short("shop")),
        dns: Dns {
            policy: DnsPolicy::None,
            servers: vec![[192, 0, 2, 53].into()],
            searches: vec![short("example.org")],
            options: vec![short("ndots:2")],
        },
        host_aliases: vec![HostAlias { ip: None, hostnames: vec![short("host.docker.internal")] }],
        fs_group: Some(2000),
        supplemental_groups: vec![3000],
        sysctls: vec![("net.core.somaxconn".to_owned(), "512".to_owned())],
        priority: -7,
        depends_on: vec![Dependency { pod: short("db-0"), condition: Condition::Healthy, optional: true }],
        service_account: short("default"),
    }
}

fn container() -> Container {
    Container {
        name: short("web"),
        image: Image {
            reference: "demo-web:1".to_owned(),
            digest: Digest([0xcd; 32]),
            source: ImageSource::Controller("demo-web".to_owned()),
        },
        command: vec!["/demo-web".to_owned()],
        args: vec!["--verbose".to_owned(), String::new()],
        env_from: vec![EnvFrom { prefix: "P_".to_owned(), source: source(DataKind::ConfigMap) }],
        env: variables(),
        working_dir: Some("/srv".to_owned()),
        security: Security {
            user: Some(1000),
            group: Some(1000),
            run_as_non_root: true,
            read_only_root: true,
            add_capabilities: vec![short("NET_BIND_SERVICE")],
            drop_capabilities: vec![short("ALL")],
            user_name: Some("nobody:nogroup".to_owned()),
            seccomp_unconfined: true,
        },
        pull_policy: PullPolicy::Never,
        limits: limits(),
        requests: Requests {
            memory_bytes: Some(32 << 20),
            cpu_millis: Some(100),
            ephemeral_storage_bytes: Some(1 << 20),
        },
        devices: vec![Device {
            path: "/dev/ttyUSB0".to_owned(),
            container_path: "/dev/modem".to_owned(),
            read: true,
            write: true,
            mknod: false,
        }],
        probes: probes(),
        lifecycle: Lifecycle {
            post_start: Some(Handler::Exec { command: vec!["true".to_owned()] }),
            pre_stop: Some(Handler::Sleep { seconds: 2 }),
            stop_signal: Some(3),
        },
        restart_policy: Some(RestartPolicy::Never),
        max_restarts: Some(5),
        stdin: true,
        tty: true,
        init: true,
        mounts: vec![VolumeMount {
            volume: short("data"),
            path: "/data".to_owned(),
            read_only: true,
            sub_path: Some("web/$(PORT)".to_owned()),
        }],
        ports: vec![Port {
            name: short("http"),
            container_port: 8080,
            host_port: Some(18080),
            host_ip: Some([127, 0, 0, 1].into()),
            protocol: Protocol::Tcp,
        }],
    }
}

fn probes() -> Probes {
    Probes {
        startup: Some(probe(Handler::HttpGet(HttpGet {
            https: true,
            host: Some("localhost".to_owned()),
            port: 8080,
            path: "/healthz".to_owned(),
            headers: vec![("X-Probe".to_owned(), "startup".to_owned())],
        }))),
        liveness: Some(probe(Handler::TcpSocket { host: None, port: 8080 })),
        readiness: Some(probe(Handler::Grpc { port: 9090, service: "web".to_owned() })),
        ignore_image: true,
    }
}

fn variables() -> Vec<EnvVar> {
    vec![
        EnvVar { name: "PORT".to_owned(), value: "8080".into() },
        EnvVar {
            name: "KEY".to_owned(),
            value: EnvValue::Key { source: source(DataKind::Secret), key: "api-key".to_owned() },
        },
        EnvVar { name: "ME".to_owned(), value: EnvValue::Field(PodField::Label("app".to_owned())) },
        EnvVar { name: "MOST".to_owned(), value: EnvValue::Resource(memory_limit()) },
    ]
}

fn source(kind: DataKind) -> DataSource {
    DataSource { kind, name: "webapp".to_owned(), optional: true }
}

fn memory_limit() -> ResourceField {
    ResourceField { container: Some(short("web")), resource: ResourceName::LimitsMemory, divisor_millis: 1000 << 20 }
}

fn probe(action: Handler) -> Probe {
    Probe {
        action,
        initial_delay_ms: 500,
        period_ms: 10_000,
        timeout_ms: 1_000,
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace_seconds: Some(5),
    }
}

fn limits() -> Limits {
    Limits {
        memory_bytes: Some(64 << 20),
        memory_swap_bytes: Some(96 << 20),
        cpu_millis: Some(500),
        cpuset: Some("0-2".to_owned()),
        pids: Some(32),
        ephemeral_storage_bytes: Some(8 << 20),
        huge_pages: vec![(2 << 20, 4 << 20)],
        block_io: vec![BlockIo {
            device: "/dev/sda".to_owned(),
            read_bytes: Some(1 << 20),
            write_bytes: Some(2 << 20),
            read_operations: Some(100),
            write_operations: Some(200),
        }],
        ulimits: vec![Ulimit { name: short("nofile"), soft: 4096, hard: 8192 }],
        shm_bytes: Some(64 << 20),
        oom_score_adj: Some(-500),
    }
}

fn volumes() -> Vec<Volume> {
    let files =
        DownwardFile { path: "memory".to_owned(), mode: Some(0o444), value: DownwardValue::Resource(memory_limit()) };
    let labels = DownwardFile { path: "labels".to_owned(), mode: None, value: DownwardValue::Field(PodField::Labels) };
    let key = KeyPath { key: "api-key".to_owned(), path: "keys/api".to_owned(), mode: Some(0o400) };
    let empty = EmptyDir { memory: true, size_limit: Some(8 << 20), mode: Some(0o1777) };
    let projected = VolumeSource::Projected {
        sources: vec![
            Projection::Data { source: source(DataKind::Secret), items: vec![key] },
            Projection::Downward(vec![files, labels]),
        ],
        default_mode: 0o644,
    };
    vec![
        Volume {
            name: short("data"),
            source: VolumeSource::HostPath { path: "/srv/data".to_owned(), kind: HostPathKind::Directory },
        },
        Volume { name: short("cache"), source: VolumeSource::EmptyDir(empty) },
        Volume {
            name: short("kept"),
            source: VolumeSource::Persistent { name: "db-data".to_owned(), read_only: true, like_image: true },
        },
        Volume { name: short("about"), source: projected },
    ]
}

/// A container that crashed, waits, and will be started again.
pub(crate) fn pod_status() -> PodStatus {
    let ended = Termination {
        exit_code: 137,
        signal: 9,
        reason: reason("OOMKilled"),
        message: "killed by the kernel: over its limit of 64 MiB".to_owned(),
        started_at: 1_700_000_000_000,
        finished_at: -1,
    };
    let waiting =
        ContainerState::Waiting { reason: reason("CrashLoopBackOff"), message: "starts again in 20 s".to_owned() };
    PodStatus {
        ips: vec![[10, 42, 0, 2].into()],
        uid: Uid([0x22; 16]),
        phase: Phase::Running,
        reason: reason(""),
        message: String::new(),
        started_at: 1_700_000_000_000,
        conditions: vec![PodCondition {
            kind: ConditionKind::Ready,
            holds: false,
            since: 1_700_000_000_000,
            reason: reason("ContainersNotReady"),
            message: "containers with unready status: [web]".to_owned(),
        }],
        init_containers: Vec::new(),
        containers: vec![ContainerStatus {
            name: short("web"),
            state: waiting,
            last: Some(ended),
            restarts: 2,
            image: Some(Digest([0xcd; 32])),
            started: false,
            ready: false,
        }],
    }
}

/// Every kind at least once, in the order of the kind numbers.
pub(crate) fn messages() -> Vec<Message> {
    let logs = StreamRequest::Logs {
        pod: Uid([0x22; 16]),
        container: short("web"),
        follow: true,
        tail: Some(100),
        since_seconds: Some(3600),
        previous: false,
        timestamps: true,
    };
    let exec = StreamRequest::Exec {
        pod: Uid([0x22; 16]),
        container: short(""),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), "id".to_owned()],
        tty: true,
        stdin: false,
    };
    let export = ImageRequest::Export { images: vec!["demo/web:1".to_owned()], path: "/tmp/web.tar".to_owned() };
    let refused = "spec.containers[0].image: must have 1 to 1024 bytes".to_owned();
    let local = LocalPod { namespace: short("default"), name: short("web-0"), status: pod_status() };
    let config = r#"{"auths":{"registry.example":{"auth":"dXNlcjpzZWNyZXQ="}}}"#.to_owned();
    let secret = PullSecret { namespace: short("default"), name: short("registry"), config };
    vec![
        hello().into(),
        Welcome { version: 1, heartbeat_seconds: 25, time: 1_763_700_000_000, retry_seconds: 5 }.into(),
        Reject { code: RejectCode::Token, message: "this token was used up".to_owned(), retry_seconds: 60 }.into(),
        Heartbeat { answer: true }.into(),
        ManifestBegin {
            revision: 301,
            epoch: [0x44; 8],
            base: Base::Items(vec![0b101]),
            size: 20_000,
            digest: Digest([0xef; 32]),
            length: 130,
            check: [0x55; 8],
            from: 16,
        }
        .into(),
        ManifestPiece { bytes: vec![2, 7] }.into(),
        GetItems.into(),
        held().into(),
        ManifestRefused { revision: 301, held: held(), message: refused }.into(),
        StatusUpdate { full: true, pods: vec![pod_status()], removed: vec![Uid([0x33; 16])] }.into(),
        StreamOpen { id: 1, request: logs }.into(),
        StreamOpen { id: 2, request: exec }.into(),
        StreamOpen { id: 3, request: StreamRequest::Image(export) }.into(),
        StreamOpen { id: 4, request: StreamRequest::PortForward { pod: Uid([0x22; 16]), port: 8080 } }.into(),
        StreamData { id: 1, channel: Channel::Stdout, bytes: b"hello\n".to_vec() }.into(),
        StreamCredit { id: 1, bytes: 32768 }.into(),
        StreamResize { id: 2, columns: 120, rows: 40 }.into(),
        StreamClose { id: 2, end: StreamEnd::Exited(137) }.into(),
        StreamClose { id: 1, end: StreamEnd::Failed("no such container".to_owned()) }.into(),
        GetStatus.into(),
        NodeStatus {
            name: short("kiln-7"),
            revision: 301,
            link: "192.0.2.1:7443: connected".to_owned(),
            pods: vec![local],
        }
        .into(),
        PullSecrets { secrets: vec![secret] }.into(),
        Items { checks: vec![[0x66; 8], [0x77; 8]] }.into(),
        Goodbye { retry_seconds: 30 }.into(),
    ]
}
