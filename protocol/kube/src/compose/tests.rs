//! Compose files as people write them.

use std::collections::BTreeMap;

use skeg_protocol::Digest;
use skeg_protocol::manifest::*;

use super::*;

/// Files in memory.
struct Memory(BTreeMap<&'static str, &'static str>);

impl Files for Memory {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        self.0.get(path).map(|text| text.as_bytes().to_vec()).ok_or_else(|| "no such file".to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

fn image(reference: &str) -> Result<Image, String> {
    Ok(Image { reference: reference.to_owned(), digest: Digest([1; 32]), source: ImageSource::Registry })
}

fn project(files: &[(&'static str, &'static str)], request: Request) -> Result<Composed, String> {
    let memory = Memory(files.iter().copied().collect());
    let files = vec!["/srv/shop/compose.yml".to_owned()];
    let request = if request.files.is_empty() { Request { files, ..request } } else { request };
    convert_compose(&request, &memory, &image).map_err(|fault| fault.to_string())
}

/// The only pod of a project of one file.
fn pod(text: &'static str) -> Pod {
    let composed = project(&[("/srv/shop/compose.yml", text)], Request::default()).unwrap();
    let [pod] = composed.bundle.pods.as_slice() else { panic!("{:?}", composed.bundle.pods) };
    pod.clone()
}

fn complaint(text: &'static str) -> String {
    project(&[("/srv/shop/compose.yml", text)], Request::default()).unwrap_err()
}

fn values(pod: &Pod) -> Vec<(&str, &str)> {
    fn text(value: &EnvValue) -> &str {
        if let EnvValue::Text(text) = value { text } else { panic!("{value:?}") }
    }
    pod.containers[0].env.iter().map(|variable| (variable.name.as_str(), text(&variable.value))).collect()
}

#[test]
fn commands_are_split_and_a_dollar_sign_stays_one() {
    let pod = pod("services: {a: {image: i, entrypoint: sh -c, command: 'echo \"$$(HOME)\"', environment: [P=$$1]}}");
    assert_eq!(pod.containers[0].command, ["sh", "-c"]);
    assert_eq!(pod.containers[0].args, ["echo", "$$(HOME)"], "the device makes one dollar sign of two");
    assert_eq!(values(&pod), [("P", "$$1")]);
    let pod = self::pod("services: {a: {image: i, entrypoint: [], command: [x, 5]}}");
    assert_eq!((&pod.containers[0].command, pod.containers[0].args.len()), (&vec!["x".to_owned(), "5".to_owned()], 0));
}

#[test]
fn ports_are_short_long_and_ranges() {
    let pod = pod(
        "services:\n  a:\n    image: i\n    ports:\n      - 8080:80\n      - 127.0.0.1:9000-9001:90-91/udp\n      \
        - '[::1]:7:8'\n      - {target: 1, published: '2', mode: host}\n    expose: [80, '100-101']\n",
    );
    let ports: Vec<_> = pod.containers[0].ports.iter().map(|port| (port.container_port, port.host_port)).collect();
    let published = [(80, Some(8080)), (90, Some(9000)), (91, Some(9001)), (8, Some(7)), (1, Some(2))];
    assert_eq!(ports[..5], published);
    assert_eq!(ports[5..], [(100, None), (101, None)], "80 is there already");
    assert_eq!(pod.containers[0].ports[1].protocol, Protocol::Udp);
    assert_eq!(pod.containers[0].ports[3].host_ip, Some("::1".parse().unwrap()));
    let text = "services: {a: {image: i, ports: ['8000-8001:80'], deploy: {replicas: 2}}}";
    let two = project(&[("/srv/shop/compose.yml", text)], Request::default()).unwrap().bundle;
    let published: Vec<_> = two.pods.iter().map(|pod| pod.containers[0].ports[0].host_port).collect();
    assert_eq!(published, [Some(8000), Some(8001)], "each replica has one of the range");
    assert!(complaint("services: {a: {image: i, ports: ['80']}}").contains("ports[0]: needs a published port"));
}

#[test]
fn volumes_are_named_bound_and_in_memory() {
    let text = "services:\n  a:\n    image: i\n    volumes:\n      - db_data:/d:ro\n      - ./conf:/c\n      - /anonymous\n      \
        - {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}\nvolumes: {db_data: }\n";
    let composed = project(&[("/srv/shop/compose.yml", text)], Request::default()).unwrap();
    let pod = &composed.bundle.pods[0];
    let sources: Vec<_> = pod.volumes.iter().map(|volume| volume.source.clone()).collect();
    assert_eq!(sources[0], VolumeSource::Persistent { name: "db-data".into(), read_only: false, like_image: true });
    assert_eq!(sources[1], VolumeSource::HostPath { path: "/srv/shop/conf".into(), kind: HostPathKind::Any });
    assert_eq!(sources[2], VolumeSource::EmptyDir(EmptyDir::default()));
    let memory = EmptyDir { memory: true, size_limit: Some(1 << 20), mode: Some(0o700) };
    assert_eq!(sources[3], VolumeSource::EmptyDir(memory));
    assert!(pod.containers[0].mounts[0].read_only);
    assert!(composed.bundle.folders.contains("/srv/shop/conf"));
    let text = complaint("services: {a: {image: i, volumes: ['gone:/d']}}");
    assert_eq!(
        text,
        "/srv/shop/compose.yml: services.a.volumes[0].source: \"gone\" is not declared under the file's volumes"
    );
}

#[test]
fn env_files_come_before_environment_and_a_name_alone_is_looked_up() {
    let text = "services:\n  a:\n    image: i\n    env_file: [a.env, {path: gone.env, required: false}]\n    environment:\n      \
        B: two\n      FROM_DOTENV:\n      UNSET:\n";
    let files = [
        ("/srv/shop/compose.yml", text),
        ("/srv/shop/a.env", "A=1\nB=1\nC=${FROM_DOTENV}\n"),
        ("/srv/shop/.env", "FROM_DOTENV=env\nCOMPOSE_PROJECT_NAME=My_Shop\n"),
    ];
    let composed = project(&files, Request::default()).unwrap();
    assert_eq!(values(&composed.bundle.pods[0]), [("A", "1"), ("C", "env"), ("B", "two"), ("FROM_DOTENV", "env")]);
    assert_eq!(composed.project, "my-shop");
    let variables = [("FROM_DOTENV".to_owned(), "shell".to_owned())].into();
    let composed = project(&files, Request { variables, ..Request::default() }).unwrap();
    assert_eq!(values(&composed.bundle.pods[0])[3], ("FROM_DOTENV", "shell"), "the shell's word counts more");
}

#[test]
fn services_extend_others_here_and_in_other_files() {
    let text = "services:\n  base: {image: i, profiles: [never], environment: {A: 1, B: 1}, cap_add: [CHOWN]}\n  \
        a: {extends: base, environment: {B: 2}, profiles: !!null }\n  b: {extends: {file: sub/more.yml, service: x}}\n";
    let files = [
        ("/srv/shop/compose.yml", text),
        ("/srv/shop/sub/more.yml", "services: {x: {extends: y, env_file: x.env}, y: {image: j, restart: always}}"),
        ("/srv/shop/sub/x.env", "X=1"),
    ];
    let composed = project(&files, Request { profiles: vec!["never".into()], ..Request::default() }).unwrap();
    let find = |name: &str| composed.bundle.pods.iter().find(|pod| pod.name == name).unwrap();
    assert_eq!(values(find("a-1")), [("A", "1"), ("B", "2")]);
    assert_eq!(find("a-1").containers[0].security.add_capabilities, ["CHOWN"]);
    assert_eq!(find("b-1").restart_policy, RestartPolicy::Always);
    assert_eq!(values(find("b-1")), [("X", "1")], "paths begin at the file that they stand in");
    let endless = complaint("services: {a: {extends: b}, b: {extends: a}}");
    assert!(endless.contains("extend each other more than 16 deep"), "{endless}");
}

#[test]
fn files_include_others_with_their_own_folder_and_variables() {
    let files = [
        ("/srv/shop/compose.yml", "include: [db/compose.yml]\nservices: {a: {image: i, depends_on: [db]}}"),
        ("/srv/shop/db/compose.yml", "services: {db: {image: 'db:${TAG}', volumes: ['./x:/x']}}"),
        ("/srv/shop/db/.env", "TAG=7"),
    ];
    let bundle = project(&files, Request::default()).unwrap().bundle;
    let db = bundle.pods.iter().find(|pod| pod.name == "db-1").unwrap();
    assert_eq!(db.containers[0].image.reference, "db:7");
    assert!(matches!(&db.volumes[0].source, VolumeSource::HostPath { path, .. } if path == "/srv/shop/db/x"));
    let endless = complaint("include: [compose.yml]\nservices: {a: {image: i}}");
    assert!(endless.contains("include each other") || endless.contains("more than 64 files"), "{endless}");
}

#[test]
fn later_files_go_over_earlier_ones() {
    let files = [
        ("/srv/shop/compose.yml", "services: {a: {image: i, command: x y, environment: [A=1], ports: ['1:1']}}"),
        ("/elsewhere/more.yml", "services: {a: {command: z, environment: {A: 2, B: 3}, volumes: ['./v:/v']}}"),
    ];
    let request = Request { files: files.iter().map(|(path, _)| (*path).to_owned()).collect(), ..Request::default() };
    let bundle = project(&files, request).unwrap().bundle;
    let pod = &bundle.pods[0];
    assert_eq!(pod.containers[0].args, ["z"]);
    assert_eq!(values(pod), [("A", "2"), ("B", "3")]);
    assert!(bundle.folders.contains("/srv/shop/v"), "every path begins at the first file's folder");
}

#[test]
fn profiles_choose_services() {
    let text = "services:\n  a: {image: i}\n  b: {image: i, profiles: [x]}\n  c: {image: i, depends_on: {b: {required: false, condition: service_started}}}\n";
    let count = |profiles: &[&str]| {
        let profiles = profiles.iter().map(|&name| name.to_owned()).collect();
        project(&[("/srv/shop/compose.yml", text)], Request { profiles, ..Request::default() })
            .unwrap()
            .bundle
            .pods
            .len()
    };
    assert_eq!((count(&[]), count(&["x"]), count(&["*"]), count(&["y"])), (2, 3, 3, 2));
    let text = complaint("services: {a: {image: i, depends_on: [b]}, b: {image: i, profiles: [x]}}");
    assert!(text.contains("depends on the service \"b\", which is in no active profile"), "{text}");
}

#[test]
fn networks_have_aliases_and_modes() {
    let pod = pod(
        "services: {my_web: {image: i, container_name: front, networks: {n: {aliases: [w], ipv4_address: 10.1.0.5}}}}\n\
        networks: {n: {ipam: {config: [{subnet: 10.1.0.0/24, gateway: 10.1.0.1}]}, driver_opts: {com.docker.network.driver.mtu: 1400}}}",
    );
    assert_eq!(pod.name, "front");
    assert_eq!(pod.networks[0].aliases, ["my_web", "front", "w"]);
    assert_eq!(pod.networks[0].ipv4, Some([10, 1, 0, 5].into()));
    assert!(self::pod("services: {a: {image: i, network_mode: host}}").host_network);
    assert!(self::pod("services: {a: {image: i, network_mode: none}}").no_network);
    let alias = &self::pod("services: {a: {image: i, extra_hosts: ['h:host-gateway', 'x=::1']}}").host_aliases;
    assert_eq!((alias[0].ip, alias[1].ip), (None, Some("::1".parse().unwrap())));
    assert!(complaint("services: {a: {image: i, network_mode: 'service:b'}}").contains("network_mode: not supported"));
}

#[test]
fn health_checks_restarts_and_ends_arrive() {
    let pod = pod("services: {a: {image: i, restart: 'on-failure:3', stop_signal: SIGUSR1, stop_grace_period: 1m30s, \
        user: '1000:5', healthcheck: {test: curl x, interval: 1m, retries: 5}}}");
    assert_eq!((pod.restart_policy, pod.containers[0].max_restarts), (RestartPolicy::OnFailure, Some(3)));
    assert_eq!((pod.termination_grace_seconds, pod.containers[0].lifecycle.stop_signal), (90, Some(10)));
    let probe = pod.containers[0].probes.readiness.clone().unwrap();
    assert_eq!(probe.action, Handler::Exec { command: ["/bin/sh", "-c", "curl x"].map(str::to_owned).to_vec() });
    assert_eq!((probe.period_ms, probe.timeout_ms, probe.failure_threshold), (60_000, 30_000, 5));
    let security = &pod.containers[0].security;
    assert_eq!((security.user, security.group, &security.user_name), (Some(1000), Some(5), &None));
    let named = self::pod("services: {a: {image: i, user: www, healthcheck: {disable: true}}}");
    assert_eq!(named.containers[0].security.user_name.as_deref(), Some("www"));
    assert!(named.containers[0].probes.ignore_image && named.containers[0].probes.readiness.is_none());
    assert_eq!(named.restart_policy, RestartPolicy::Never, "Compose restarts nothing unless it is told to");
}

#[test]
fn secrets_and_configs_become_files() {
    let text = "services:\n  a:\n    image: i\n    secrets: [one, {source: two, target: /etc/two, mode: 0400}]\n    configs: [page]\n\
        secrets: {one: {file: ./one.txt}, two: {environment: TWO}}\nconfigs: {page: {content: \"hello ${TWO}\"}}\n";
    let files = [("/srv/shop/compose.yml", text), ("/srv/shop/one.txt", "1"), ("/srv/shop/.env", "TWO=2")];
    let bundle = project(&files, Request::default()).unwrap().bundle;
    let content = |name: &str| bundle.data.iter().find(|data| data.name == name).unwrap().entries[0].1.clone();
    assert_eq!((content("one"), content("two"), content("page")), (b"1".to_vec(), b"2".to_vec(), b"hello 2".to_vec()));
    let mounts: Vec<_> = bundle.pods[0].containers[0].mounts.iter().map(|mount| mount.path.as_str()).collect();
    assert_eq!(mounts, ["/run/secrets", "/etc/two", "/page"]);
    bundle.into_manifest().unwrap();
}

#[test]
fn resources_come_from_both_ways_of_writing_them() {
    let pod =
        pod("services: {a: {image: i, mem_limit: 1g, cpus: 1.5, pids_limit: -1, memswap_limit: 2g, cpuset: 0-1, \
        shm_size: 1m, oom_score_adj: -5, ulimits: {nproc: 7, core: -1}, cpu_shares: 512, \
        blkio_config: {device_read_bps: [{path: /dev/sda, rate: 1mb}]}, \
        deploy: {resources: {limits: {memory: 2g, pids: 9}}}}}");
    let Limits { memory_bytes, cpu_millis, pids, memory_swap_bytes, ulimits, block_io, .. } = &pod.containers[0].limits;
    assert_eq!(
        (*memory_bytes, *cpu_millis, *pids, *memory_swap_bytes),
        (Some(2 << 30), Some(1500), Some(9), Some(2 << 30))
    );
    assert_eq!((ulimits[0].hard, ulimits[1].soft), (u64::MAX, 7));
    assert_eq!(block_io[0].read_bytes, Some(1 << 20));
    assert_eq!(pod.containers[0].requests.cpu_millis, Some(500));
}

#[test]
fn what_a_device_does_not_do_is_refused_by_file_and_field() {
    for (text, part) in [
        ("services: {a: {build: .}}", "services.a.build: is not done on a device"),
        ("services: {a: {image: i, privileged: true}}", "services.a.privileged: not supported yet: true"),
        ("services: {a: {image: i, pid: host}}", "services.a.pid: not supported yet"),
        ("services: {a: {image: i, imagee: x}}", "unknown field \"services.a.imagee\""),
        ("services: {a: {image: i, security_opt: ['apparmor:x']}}", "security_opt[0]: not supported yet"),
        ("services: {a: {image: i, tmpfs: '/t:uid=5'}}", "tmpfs[0]: \"/t:uid=5\" has the option \"uid=5\""),
        ("services: {a: {image: '${X:?set it}'}}", "services.a.image: variable X is needed: set it"),
        ("services: {A B: {image: i}}", "a service's name must be"),
        ("services: {a: {image: i, networks: [n]}}", "\"n\" is not declared under the file's networks"),
        ("services: {a: {image: i, networks: [n]}}\nnetworks: {n: {external: true}}", "networks.n.external"),
        ("services: {a: {image: i, env_file: x.env}}", "/srv/shop/x.env: no such file"),
        ("services: {a: {image: i}, A: {image: i}}", "has the same DNS name as the service \"A\""),
        ("services: {}", "there is no service"),
        ("volumes: [", "compose.yml: "),
        ("secrets: {s: {content: x}}\nservices: {a: {image: i, secrets: [s]}}", "secrets.s.content: is for configs"),
    ] {
        let complaint = complaint(text);
        assert!(complaint.contains(part), "{text}: {complaint}");
    }
}

#[test]
fn what_has_no_meaning_here_is_noted() {
    let text = "services: {a: {image: i, build: ., platform: linux/arm64, x-own: 1}}\nx-top: {y: 1}\nversion: '3'";
    let notes = project(&[("/srv/shop/compose.yml", text)], Request::default()).unwrap().bundle.notes;
    assert!(notes[0].contains("services.a.build is passed over") && notes[1].contains("platform"), "{notes:?}");
}
