//! One message of each kind with every field set to something telling. It owns the samples only; what is done
//! with them is the tests' own.

use skeg_protocol::id::{Digest, Uid};
use skeg_protocol::manifest::{
    Container, EnvVar, Image, ImageSource, Limits, Pod, Port, Protocol, PullPolicy, RestartPolicy, Security, Volume,
    VolumeMount, VolumeSource,
};
use skeg_protocol::message::{
    Channel, GetStatus, Heartbeat, Held, Hello, ImageRequest, LocalPod, ManifestBegin, ManifestEnd, ManifestRefused,
    Message, NodeInfo, NodeStatus, PullSecret, PullSecrets, Reject, RejectCode, StatusUpdate, StreamClose,
    StreamCredit, StreamData, StreamEnd, StreamOpen, StreamRequest, StreamResize, VERSIONS, Welcome,
};
use skeg_protocol::status::{ContainerState, ContainerStatus, Phase, PodStatus, Termination, reason};

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
    }
}

/// What a device with one manifest holds.
pub(crate) fn held() -> Held {
    Held { revision: 300, digest: Digest([0xab; 32]) }
}

/// A pod that uses every field.
pub(crate) fn pod() -> Pod {
    let container = Container {
        name: short("web"),
        image: Image {
            reference: "demo-web:1".to_owned(),
            digest: Digest([0xcd; 32]),
            source: ImageSource::Controller("demo-web".to_owned()),
        },
        command: vec!["/demo-web".to_owned()],
        args: vec!["--verbose".to_owned(), String::new()],
        env: vec![EnvVar { name: "PORT".to_owned(), value: "8080".to_owned() }],
        working_dir: Some("/srv".to_owned()),
        security: Security {
            user: Some(1000),
            group: Some(1000),
            run_as_non_root: true,
            read_only_root: true,
            add_capabilities: vec![short("NET_BIND_SERVICE")],
            drop_capabilities: vec![short("ALL")],
        },
        pull_policy: PullPolicy::Never,
        limits: Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(500), pids: Some(32) },
        mounts: vec![VolumeMount { volume: short("data"), path: "/data".to_owned(), read_only: true }],
        ports: vec![Port {
            container_port: 8080,
            host_port: Some(18080),
            host_ip: Some([127, 0, 0, 1].into()),
            protocol: Protocol::Tcp,
        }],
    };
    Pod {
        uid: Uid([0x22; 16]),
        namespace: short("default"),
        name: short("web-0"),
        host_network: false,
        restart_policy: RestartPolicy::OnFailure,
        termination_grace_seconds: 30,
        containers: vec![container],
        volumes: vec![
            Volume { name: short("data"), source: VolumeSource::HostPath { path: "/srv/data".to_owned() } },
            Volume { name: short("cache"), source: VolumeSource::EmptyDir { memory: true } },
        ],
        image_pull_secrets: vec![short("registry")],
        host_users: true,
    }
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
        uid: Uid([0x22; 16]),
        phase: Phase::Running,
        reason: reason(""),
        message: String::new(),
        started_at: 1_700_000_000_000,
        containers: vec![ContainerStatus {
            name: short("web"),
            state: waiting,
            last: Some(ended),
            restarts: 2,
            image: Some(Digest([0xcd; 32])),
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
        Welcome { version: 1, heartbeat_seconds: 25, time: 1_763_700_000_000 }.into(),
        Reject { code: RejectCode::Token, message: "this token was used up".to_owned() }.into(),
        Heartbeat.into(),
        ManifestBegin { revision: 301, base: 300, removed: vec![Uid([0x33; 16])] }.into(),
        pod().into(),
        ManifestEnd { revision: 301, digest: Digest([0xef; 32]) }.into(),
        held().into(),
        ManifestRefused { revision: 301, held: held(), message: refused }.into(),
        StatusUpdate { full: true, pods: vec![pod_status()], removed: vec![Uid([0x33; 16])] }.into(),
        StreamOpen { id: 1, request: logs }.into(),
        StreamOpen { id: 2, request: exec }.into(),
        StreamOpen { id: 3, request: StreamRequest::Image(export) }.into(),
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
    ]
}
