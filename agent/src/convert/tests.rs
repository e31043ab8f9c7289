//! The conversion against real image configurations: what ends up in the spec, and which field errors name.

use super::*;
use crate::core::tests::pod;
use crate::volumes::facts::tests::facts;
use oci_spec::image::Config as ImageConfig;

fn image(user: &str) -> ImageConfiguration {
    let mut config = ImageConfig::default();
    config.set_user(Some(user.to_owned()));
    config.set_entrypoint(Some(vec!["/entry".to_owned()]));
    config.set_cmd(Some(vec!["arg".to_owned()]));
    config.set_env(Some(vec!["FROM=image".to_owned()]));
    config.set_working_dir(Some("/srv".to_owned()));
    let mut image = ImageConfiguration::default();
    image.set_config(Some(config));
    image
}

fn place(path: &str) -> Place {
    let ids = match path {
        "/b" => Ids::Seen,
        _ if path.starts_with("/proc") => Ids::Kernel,
        _ => Ids::Own,
    };
    Place { path: PathBuf::from(path), ids, read_only: path.ends_with(".ro") }
}

fn convert(pod: &Pod, image: &ImageConfiguration, volumes: &[(&str, &str)]) -> Result<oci::Spec, String> {
    converted(pod, image, volumes).map(|converted| converted.spec)
}

fn converted(pod: &Pod, image: &ImageConfiguration, volumes: &[(&str, &str)]) -> Result<Converted, String> {
    let volumes = volumes.iter().map(|(name, path)| ((*name).try_into().unwrap(), place(path))).collect();
    spec(&Inputs {
        pod,
        container: &pod.containers[0],
        image,
        layers: &[],
        hostname: &pod.name,
        etc: Path::new("/run/skeg/etc"),
        volumes: &volumes,
        own_users: !pod.host_users && !pod.host_network,
        facts: &facts(Vec::new()),
        devices: Path::new("/run/skeg/devices"),
        init: Path::new("/run/skeg/init"),
    })
    .map_err(|error| error.to_string())
}

#[test]
fn command_and_args_replace_the_images_as_in_kubernetes() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (command, args, expected) in
        [("", "", "ep img"), ("", "mine", "ep mine"), ("cmd", "", "cmd"), ("cmd", "mine", "cmd mine")]
    {
        assert_eq!(arguments(&words("ep"), &words("img"), &words(command), &words(args)), words(expected));
    }
}

#[test]
fn the_spec_holds_what_image_and_pod_say() {
    let mut pod = pod(1, "web", &["main"]);
    pod.containers[0].security.user = Some(1000);
    pod.containers[0].security.read_only_root = true;
    let spec = convert(&pod, &image("root"), &[]).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/entry", "arg"]);
    assert_eq!(process.user().uid(), 1000);
    assert_eq!(process.cwd(), Path::new("/srv"));
    let env = process.env().as_ref().unwrap();
    assert!(env.contains(&"FROM=image".to_owned()) && env.contains(&"HOSTNAME=web".to_owned()), "{env:?}");
    assert_eq!(spec.hostname().as_deref(), Some("web"));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(process.no_new_privileges(), Some(true));
    let bound: Vec<_> = spec.mounts().as_ref().unwrap().iter().map(|mount| mount.destination().clone()).collect();
    assert!(bound.contains(&PathBuf::from("/etc/resolv.conf")), "{bound:?}");
}

#[test]
fn users_of_its_own_are_65536_and_own_what_they_own_on_the_host() {
    let mut pod = pod(1, "web", &["main"]);
    for name in ["made", "found"] {
        let mount = skeg_protocol::manifest::VolumeMount {
            volume: name.try_into().unwrap(),
            path: format!("/{name}"),
            read_only: false,
            sub_path: None,
        };
        pod.containers[0].mounts.push(mount);
    }
    let asks = |pod: &Pod| {
        let spec = convert(pod, &image(""), &[("made", "/a"), ("found", "/b")]).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let users = namespaces.iter().any(|namespace| namespace.typ() == oci::LinuxNamespaceType::User);
        let mapped = spec
            .mounts()
            .clone()
            .unwrap()
            .into_iter()
            .filter(|mount| mount.options().iter().flatten().any(|option| option == "ridmap"));
        (users, mapped.map(|mount| mount.destination().clone()).collect::<Vec<_>>())
    };
    assert_eq!(asks(&pod), (true, vec![PathBuf::from("/found")]));
    pod.containers[0].security.user = Some(65_536);
    assert_eq!(
        convert(&pod, &image(""), &[]).unwrap_err(),
        "securityContext.runAsUser: user or group 65536 is not one of the pod's own 65536; set hostUsers: true in the spec"
    );
    pod.host_users = true;
    assert_eq!(asks(&pod), (false, vec![]));
}

#[test]
fn the_devices_network_means_no_network_namespace() {
    let mut pod = pod(1, "web", &["main"]);
    let network = |pod: &Pod| {
        let spec = convert(pod, &image(""), &[]).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        namespaces.iter().any(|namespace| namespace.typ() == oci::LinuxNamespaceType::Network)
    };
    assert!(network(&pod));
    pod.host_network = true;
    assert!(!network(&pod));
}

#[test]
fn capabilities_are_dropped_then_added() {
    let name = |text: &str| text.try_into().unwrap();
    let mut pod = pod(1, "web", &["main"]);
    pod.containers[0].security.drop_capabilities = vec![name("ALL")];
    pod.containers[0].security.add_capabilities = vec![name("net_bind_service")];
    let spec = convert(&pod, &image(""), &[]).unwrap();
    let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    assert_eq!(sets.bounding().as_ref().unwrap().iter().collect::<Vec<_>>(), [&oci::Capability::NetBindService]);
    assert!(sets.ambient().is_none() && sets.inheritable().is_none());
    pod.containers[0].security.add_capabilities = vec![name("ALL")];
    let spec = convert(&pod, &image(""), &[]).unwrap();
    let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    assert_eq!(sets.effective().as_ref().unwrap().len(), 41);
    pod.containers[0].security.add_capabilities = vec![name("FLY")];
    let error = convert(&pod, &image(""), &[]).unwrap_err();
    assert!(error.contains("capabilities.add") && error.contains("FLY"), "{error}");
}

#[test]
fn errors_name_the_field() {
    let mut wrong = pod(1, "web", &["main"]);
    wrong.containers[0].security.run_as_non_root = true;
    assert!(convert(&wrong, &image(""), &[]).unwrap_err().contains("runAsNonRoot"));
    assert!(convert(&wrong, &image("1000"), &[]).is_ok());
    assert!(convert(&wrong, &image("ghost"), &[]).unwrap_err().contains("ghost"));
    let bare = pod(1, "web", &["main"]);
    assert!(convert(&bare, &ImageConfiguration::default(), &[]).unwrap_err().starts_with("command"));
    let mut mounted = pod(1, "web", &["main"]);
    mounted.containers[0].mounts = vec![skeg_protocol::manifest::VolumeMount {
        volume: "data".try_into().unwrap(),
        path: "/data".to_owned(),
        read_only: true,
        sub_path: None,
    }];
    assert!(convert(&mounted, &image(""), &[]).unwrap_err().contains("volumeMounts[0].name"));
    let spec = convert(&mounted, &image(""), &[("data", "/state/data")]).unwrap();
    let mount = spec.mounts().as_ref().unwrap().last().cloned().unwrap();
    assert_eq!(mount.source().as_deref(), Some(Path::new("/state/data")));
    assert!(mount.options().as_ref().unwrap().contains(&"ro".to_owned()));
    mounted.containers[0].mounts[0].path = "//".to_owned();
    assert!(convert(&mounted, &image(""), &[("data", "/state/data")]).unwrap_err().contains("mountPath"));
}

#[test]
fn sub_paths_are_expanded_and_stay_inside_their_volume() {
    let mut pod = pod(1, "web", &["main"]);
    let mount = |path: &str| VolumeMount {
        volume: "data".try_into().unwrap(),
        path: "/data".to_owned(),
        read_only: false,
        sub_path: Some(path.to_owned()),
    };
    pod.containers[0].env = vec![skeg_protocol::manifest::EnvVar { name: "A".to_owned(), value: "x/../..".into() }];
    pod.containers[0].env.push(skeg_protocol::manifest::EnvVar { name: "B".to_owned(), value: "b".into() });
    let ask = |pod: &Pod, volume: &str| converted(pod, &image(""), &[("data", volume)]);
    pod.containers[0].mounts = vec![mount("a/$(B)/c$$")];
    let found = ask(&pod, "/a").unwrap();
    let index = found.spec.mounts().as_ref().unwrap().len() - 1;
    let expected = SubPath { mount: index, volume: PathBuf::from("/a"), path: "a/b/c$".to_owned(), make: true };
    assert_eq!(found.sub_paths, [expected]);
    assert!(!ask(&pod, "/a.ro").unwrap().sub_paths[0].make, "nothing is made in what is read-only");
    pod.containers[0].mounts = vec![mount("$(A)")];
    assert!(ask(&pod, "/a").unwrap_err().contains("must not hold `..`"));
    pod.containers[0].mounts = vec![mount("$(NONE)")];
    assert_eq!(ask(&pod, "/a").unwrap_err(), "volumeMounts[0].subPath: missing value for \"NONE\"");
}

#[test]
fn what_a_pod_asks_of_the_kernel_is_in_the_spec() {
    let mut pod = pod(1, "web", &["main"]);
    pod.fs_group = Some(2000);
    pod.supplemental_groups = vec![7, 5];
    pod.sysctls = vec![("net.core.somaxconn".to_owned(), "512".to_owned())];
    let container = &mut pod.containers[0];
    container.init = true;
    container.limits.shm_bytes = Some(1 << 20);
    container.security.seccomp_unconfined = true;
    container.devices = vec![skeg_protocol::manifest::Device {
        path: "/dev/null".to_owned(),
        container_path: "/dev/nothing".to_owned(),
        read: true,
        ..Default::default()
    }];
    let found = converted(&pod, &image("1000"), &[]).unwrap();
    let process = found.spec.process().as_ref().unwrap();
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[5, 7, 2000][..]));
    assert_eq!(process.oom_score_adj(), Some(1000));
    assert_eq!(process.args().as_ref().unwrap(), &["/dev/init", "reap", "--", "/entry", "arg"]);
    let linux = found.spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none());
    assert_eq!(linux.sysctl().as_ref().unwrap()["net.core.somaxconn"], "512");
    assert_eq!(linux.resources().as_ref().unwrap().devices().as_ref().unwrap()[0].access().as_deref(), Some("r"));
    let mounts = found.spec.mounts().as_ref().unwrap();
    let options = |path: &str| {
        let mount = mounts.iter().find(|mount| mount.destination() == Path::new(path)).unwrap();
        (mount.source().clone(), mount.options().clone().unwrap())
    };
    assert!(options("/dev/shm").1.contains(&"size=1048576".to_owned()));
    assert!(!options("/dev/shm").1.contains(&"size=65536k".to_owned()));
    assert_eq!(options("/dev/nothing").0.as_deref(), Some(Path::new("/run/skeg/devices/0")));
    let (source, init) = options("/dev/init");
    assert!(source.as_deref() == Some(Path::new("/run/skeg/init")) && init.contains(&"ro".to_owned()));
    assert_eq!(found.nodes.len(), 1);
}
