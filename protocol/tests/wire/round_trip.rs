//! Any message, encoded and decoded however its bytes are cut, comes back as it was.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use skeg_protocol::codec::{Decoder, encode};
use skeg_protocol::id::{Digest, Uid};
use skeg_protocol::manifest::{
    Container, EmptyDir, EnvValue, EnvVar, HostPathKind, Image, ImageSource, Limits, Pod, Port, Protocol, PullPolicy,
    RestartPolicy, Security, Volume, VolumeMount, VolumeSource,
};
use skeg_protocol::message::{
    Base, Channel, GetItems, GetStatus, Goodbye, Heartbeat, Held, Hello, ImageRequest, Items, LocalPod, ManifestBegin,
    ManifestPiece, ManifestRefused, Message, NodeInfo, NodeStatus, Partial, PullSecret, PullSecrets, Reject,
    RejectCode, StatusUpdate, StreamClose, StreamCredit, StreamData, StreamEnd, StreamOpen, StreamRequest,
    StreamResize, Versions, VolumeRequest, Welcome,
};
use skeg_protocol::status::{
    ConditionKind, ContainerState, ContainerStatus, Phase, PodCondition, PodStatus, Termination,
};

/// Text that fits `N` bytes whatever its characters.
fn short<const N: usize>() -> impl Strategy<Value = heapless::String<N>> {
    vec(any::<char>(), 0..=N / 4).prop_map(|characters| characters.into_iter().collect())
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(String::from_iter)
}

fn uid() -> impl Strategy<Value = Uid> {
    any::<[u8; 16]>().prop_map(Uid)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn held() -> impl Strategy<Value = Held> {
    (any::<u64>(), digest(), any::<[u8; 8]>()).prop_map(|(revision, digest, epoch)| Held { revision, digest, epoch })
}

fn node() -> impl Strategy<Value = NodeInfo> {
    let texts = (short(), short(), short(), short(), short());
    (texts, any::<u16>(), any::<u64>(), uid(), option::of(any::<std::net::IpAddr>()), any::<bool>()).prop_map(
        |((name, arch, kernel, os, agent), cpus, memory_bytes, boot, address, user_namespaces)| NodeInfo {
            name,
            arch,
            kernel,
            os,
            agent,
            cpus,
            memory_bytes,
            boot,
            address,
            user_namespaces,
        },
    )
}

fn image() -> impl Strategy<Value = Image> {
    let source = prop_oneof![Just(ImageSource::Registry), text().prop_map(ImageSource::Controller)];
    (text(), digest(), source).prop_map(|(reference, digest, source)| Image { reference, digest, source })
}

fn security() -> impl Strategy<Value = Security> {
    let capabilities = || vec(short(), 0..3);
    (option::of(any::<u32>()), option::of(any::<u32>()), any::<bool>(), any::<bool>(), capabilities(), capabilities())
        .prop_map(|(user, group, run_as_non_root, read_only_root, add_capabilities, drop_capabilities)| Security {
            user,
            group,
            run_as_non_root,
            read_only_root,
            add_capabilities,
            drop_capabilities,
            ..Security::default()
        })
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::of(any::<u64>()), option::of(any::<u32>()), option::of(any::<u32>()))
        .prop_map(|(memory_bytes, cpu_millis, pids)| Limits { memory_bytes, cpu_millis, pids, ..Limits::default() })
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    (short(), any::<u16>(), option::of(any::<u16>()), option::of(any::<std::net::IpAddr>()), protocol).prop_map(
        |(name, container_port, host_port, host_ip, protocol)| Port {
            name,
            container_port,
            host_port,
            host_ip,
            protocol,
        },
    )
}

fn container() -> impl Strategy<Value = Container> {
    let env = (text(), text()).prop_map(|(name, value)| EnvVar { name, value: EnvValue::Text(value) });
    let mount = (short(), text(), any::<bool>(), option::of(text()))
        .prop_map(|(volume, path, read_only, sub_path)| VolumeMount { volume, path, read_only, sub_path });
    let words = (vec(text(), 0..3), vec(text(), 0..3), vec(env, 0..3), option::of(text()));
    let policy = prop_oneof![Just(PullPolicy::IfNotPresent), Just(PullPolicy::Never)];
    let image = (image(), policy);
    (short(), image, words, security(), limits(), vec(mount, 0..3), vec(port(), 0..3)).prop_map(
        |(name, (image, pull_policy), (command, args, env, working_dir), security, limits, mounts, ports)| Container {
            name,
            image,
            pull_policy,
            command,
            args,
            env,
            working_dir,
            security,
            limits,
            mounts,
            ports,
            ..Container::default()
        },
    )
}

fn pod() -> impl Strategy<Value = Pod> {
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let source = prop_oneof![
        (any::<bool>(), option::of(any::<u64>()), option::of(any::<u16>()))
            .prop_map(|(memory, size_limit, mode)| VolumeSource::EmptyDir(EmptyDir { memory, size_limit, mode })),
        text().prop_map(|path| VolumeSource::HostPath { path, kind: HostPathKind::File }),
    ];
    let volume = (short(), source).prop_map(|(name, source)| Volume { name, source });
    let names = (short(), short(), vec(short(), 0..3));
    let hosts = (any::<bool>(), any::<bool>());
    (uid(), names, hosts, policy, any::<u32>(), vec(container(), 0..3), vec(volume, 0..3)).prop_map(
        |(uid, names, hosts, restart_policy, termination_grace_seconds, containers, volumes)| Pod {
            uid,
            namespace: names.0,
            name: names.1,
            image_pull_secrets: names.2,
            host_network: hosts.0,
            restart_policy,
            termination_grace_seconds,
            containers,
            volumes,
            host_users: hosts.1,
            ..Pod::default()
        },
    )
}

fn pull_secret() -> impl Strategy<Value = PullSecret> {
    (short(), short(), text()).prop_map(|(namespace, name, config)| PullSecret { namespace, name, config })
}

fn termination() -> impl Strategy<Value = Termination> {
    (any::<i32>(), any::<u8>(), short(), text(), any::<i64>(), any::<i64>()).prop_map(
        |(exit_code, signal, reason, message, started_at, finished_at)| Termination {
            exit_code,
            signal,
            reason,
            message,
            started_at,
            finished_at,
        },
    )
}

fn container_status() -> impl Strategy<Value = ContainerStatus> {
    let state = prop_oneof![
        (short(), text()).prop_map(|(reason, message)| ContainerState::Waiting { reason, message }),
        any::<i64>().prop_map(|started_at| ContainerState::Running { started_at }),
        termination().prop_map(ContainerState::Terminated),
    ];
    (short(), state, option::of(termination()), any::<u32>(), option::of(digest()), any::<[bool; 2]>()).prop_map(
        |(name, state, last, restarts, image, [started, ready])| ContainerStatus {
            name,
            state,
            last,
            restarts,
            image,
            started,
            ready,
        },
    )
}

fn condition() -> impl Strategy<Value = PodCondition> {
    use ConditionKind as Kind;
    let kind =
        prop_oneof![Just(Kind::PodScheduled), Just(Kind::Initialized), Just(Kind::ContainersReady), Just(Kind::Ready)];
    (kind, any::<bool>(), any::<i64>(), short(), text())
        .prop_map(|(kind, holds, since, reason, message)| PodCondition { kind, holds, since, reason, message })
}

fn pod_status() -> impl Strategy<Value = PodStatus> {
    let phase = prop_oneof![Just(Phase::Pending), Just(Phase::Running), Just(Phase::Succeeded), Just(Phase::Failed)];
    let containers = || vec(container_status(), 0..3);
    let parts = (vec(condition(), 0..3), containers(), containers(), vec(any::<std::net::IpAddr>(), 0..3));
    (uid(), phase, short(), text(), any::<i64>(), parts).prop_map(
        |(uid, phase, reason, message, started_at, (conditions, init_containers, containers, ips))| PodStatus {
            uid,
            phase,
            reason,
            message,
            started_at,
            conditions,
            init_containers,
            containers,
            ips,
        },
    )
}

fn image_request() -> impl Strategy<Value = ImageRequest> {
    prop_oneof![
        Just(ImageRequest::List),
        Just(ImageRequest::Usage),
        Just(ImageRequest::Prune),
        Just(ImageRequest::Verify),
        vec(text(), 0..4).prop_map(|images| ImageRequest::Inspect { images }),
        vec(text(), 0..4).prop_map(|images| ImageRequest::Remove { images }),
        text().prop_map(|reference| ImageRequest::Pull { reference }),
        (text(), option::of(text())).prop_map(|(path, name)| ImageRequest::Import { path, name }),
        (vec(text(), 0..4), text()).prop_map(|(images, path)| ImageRequest::Export { images, path }),
    ]
}

fn stream_request() -> impl Strategy<Value = StreamRequest> {
    prop_oneof![
        (
            uid(),
            short(),
            any::<bool>(),
            option::of(any::<u32>()),
            option::of(any::<u64>()),
            any::<bool>(),
            any::<bool>()
        )
            .prop_map(|(pod, container, follow, tail, since_seconds, previous, timestamps)| {
                StreamRequest::Logs { pod, container, follow, tail, since_seconds, previous, timestamps }
            }),
        (uid(), short(), vec(text(), 0..4), any::<bool>(), any::<bool>()).prop_map(
            |(pod, container, command, tty, stdin)| { StreamRequest::Exec { pod, container, command, tty, stdin } }
        ),
        image_request().prop_map(StreamRequest::Image),
        vec(text(), 0..4).prop_map(|volumes| StreamRequest::Volume(VolumeRequest::Remove { volumes })),
        (uid(), any::<u16>()).prop_map(|(pod, port)| StreamRequest::PortForward { pod, port }),
    ]
}

fn base() -> impl Strategy<Value = Base> {
    prop_oneof![Just(Base::Nothing), Just(Base::Held), vec(any::<u8>(), 0..9).prop_map(Base::Items)]
}

fn partial() -> impl Strategy<Value = Partial> {
    (any::<u64>(), any::<[u8; 8]>(), any::<u32>()).prop_map(|(revision, check, received)| Partial {
        revision,
        check,
        received,
    })
}

fn handshake() -> impl Strategy<Value = Message> {
    let code = prop_oneof![
        Just(RejectCode::Version),
        Just(RejectCode::UnknownKey),
        Just(RejectCode::Token),
        Just(RejectCode::NameTaken),
        Just(RejectCode::Revoked),
        Just(RejectCode::Invalid),
        Just(RejectCode::Pending),
    ];
    let versions = (any::<u16>(), any::<u16>()).prop_map(|(oldest, newest)| Versions { oldest, newest });
    prop_oneof![
        (versions, option::of(short()), node(), held(), option::of(partial()))
            .prop_map(|(versions, join, node, held, partial)| Hello { versions, join, node, held, partial }.into()),
        (any::<u16>(), any::<u16>(), any::<i64>(), any::<u16>()).prop_map(
            |(version, heartbeat_seconds, time, retry_seconds)| Welcome {
                version,
                heartbeat_seconds,
                time,
                retry_seconds
            }
            .into()
        ),
        (code, text(), any::<u16>())
            .prop_map(|(code, message, retry_seconds)| Reject { code, message, retry_seconds }.into()),
        any::<u16>().prop_map(|retry_seconds| Goodbye { retry_seconds }.into()),
        any::<bool>().prop_map(|answer| Heartbeat { answer }.into()),
    ]
}

fn sync() -> impl Strategy<Value = Message> {
    prop_oneof![
        (held(), base(), any::<[u32; 3]>(), any::<[u8; 8]>()).prop_map(|(held, base, [size, length, from], check)| {
            let Held { revision, digest, epoch } = held;
            ManifestBegin { revision, epoch, base, size, digest, length, check, from }.into()
        }),
        vec(any::<u8>(), 0..500).prop_map(|bytes| ManifestPiece { bytes }.into()),
        Just(GetItems.into()),
        vec(any::<[u8; 8]>(), 0..9).prop_map(|checks| Items { checks }.into()),
        held().prop_map(Message::from),
        vec(pull_secret(), 0..3).prop_map(|secrets| PullSecrets { secrets }.into()),
        (any::<u64>(), held(), text()).prop_map(|(revision, held, message)| ManifestRefused {
            revision,
            held,
            message
        }
        .into()),
        (any::<bool>(), vec(pod_status(), 0..3), vec(uid(), 0..3)).prop_map(|(full, pods, removed)| StatusUpdate {
            full,
            pods,
            removed
        }
        .into()),
    ]
}

fn stream() -> impl Strategy<Value = Message> {
    let channel = prop_oneof![Just(Channel::Stdin), Just(Channel::Stdout), Just(Channel::Stderr)];
    let end = prop_oneof![
        Just(StreamEnd::Done),
        any::<i32>().prop_map(StreamEnd::Exited),
        Just(StreamEnd::Cancelled),
        text().prop_map(StreamEnd::Failed),
    ];
    prop_oneof![
        (any::<u32>(), stream_request()).prop_map(|(id, request)| StreamOpen { id, request }.into()),
        (any::<u32>(), channel, vec(any::<u8>(), 0..500)).prop_map(|(id, channel, bytes)| StreamData {
            id,
            channel,
            bytes
        }
        .into()),
        (any::<u32>(), any::<u32>()).prop_map(|(id, bytes)| StreamCredit { id, bytes }.into()),
        (any::<u32>(), any::<u16>(), any::<u16>())
            .prop_map(|(id, columns, rows)| StreamResize { id, columns, rows }.into()),
        (any::<u32>(), end).prop_map(|(id, end)| StreamClose { id, end }.into()),
    ]
}

fn local() -> impl Strategy<Value = Message> {
    let pod =
        (short(), short(), pod_status()).prop_map(|(namespace, name, status)| LocalPod { namespace, name, status });
    prop_oneof![
        Just(GetStatus.into()),
        (short(), any::<u64>(), text(), vec(pod, 0..3)).prop_map(|(name, revision, link, pods)| NodeStatus {
            name,
            revision,
            link,
            pods
        }
        .into()),
    ]
}

/// Any message of any kind.
fn message() -> impl Strategy<Value = Message> {
    prop_oneof![handshake(), sync(), stream(), local()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_messages_cut_anywhere_come_back_as_they_were(sent in vec(message(), 1..4), piece in 1usize..4096) {
        let mut bytes = Vec::new();
        for message in &sent {
            encode(message, &mut bytes).unwrap();
        }
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        for part in bytes.chunks(piece) {
            decoder.push(part);
            while let Some(message) = decoder.next().unwrap() {
                got.push(message);
            }
        }
        prop_assert_eq!(got, sent);
    }

    #[test]
    fn validation_of_any_pod_gives_an_answer(pod in pod()) {
        let _ = pod.validate();
    }
}
