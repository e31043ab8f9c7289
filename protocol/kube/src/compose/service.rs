//! One service: a pod for each of its replicas, with one container.

use std::net::IpAddr;

use serde_json::{Value, json};
use skeg_protocol::limits::{MAX_PODS, MAX_PORTS};
use skeg_protocol::manifest::{
    Attachment, Condition, Container, Dependency, Device, DnsPolicy, EnvValue, EnvVar, HostAlias, Lifecycle, Pod, Port,
    Protocol, PullPolicy, RestartPolicy, Security,
};
use skeg_protocol::{Invalid, Label, Name, Uid};

use super::project::{Context, Trouble, network_name};
use super::scalar::Scalar as _;
use super::{health, resources, volumes, words};
use crate::cursor::{Cursor, Fault, Fields};
use crate::pod::capability;
use crate::signal;

const SERVICE: Fields = Fields {
    read: &[
        "annotations",
        "blkio_config",
        "build",
        "cap_add",
        "cap_drop",
        "command",
        "configs",
        "container_name",
        "cpu_period",
        "cpu_quota",
        "cpu_shares",
        "cpus",
        "cpuset",
        "depends_on",
        "deploy",
        "devices",
        "dns",
        "dns_opt",
        "dns_search",
        "entrypoint",
        "env_file",
        "environment",
        "expose",
        "extra_hosts",
        "group_add",
        "healthcheck",
        "hostname",
        "image",
        "init",
        "ipc",
        "labels",
        "links",
        "logging",
        "mac_address",
        "mem_limit",
        "mem_reservation",
        "memswap_limit",
        "network_mode",
        "networks",
        "oom_kill_disable",
        "oom_score_adj",
        "pid",
        "pids_limit",
        "platform",
        "ports",
        "post_start",
        "pre_stop",
        "privileged",
        "pull_policy",
        "read_only",
        "restart",
        "scale",
        "secrets",
        "security_opt",
        "shm_size",
        "stdin_open",
        "stop_grace_period",
        "stop_signal",
        "sysctls",
        "tmpfs",
        "tty",
        "ulimits",
        "user",
        "userns_mode",
        "volumes",
        "working_dir",
    ],
    ignored: &["attach", "develop", "profiles"],
    unsupported: &[
        "cgroup",
        "cgroup_parent",
        "cpu_count",
        "cpu_percent",
        "cpu_rt_period",
        "cpu_rt_runtime",
        "credential_spec",
        "device_cgroup_rules",
        "domainname",
        "external_links",
        "gpus",
        "isolation",
        "label_file",
        "mem_swappiness",
        "models",
        "provider",
        "runtime",
        "storage_opt",
        "use_api_socket",
        "uts",
        "volumes_from",
    ],
};
/// Seconds of grace, as Compose has them.
const GRACE: u32 = 10;

/// Adds a service's pods to the bundle.
pub(super) fn convert(context: &mut Context<'_>, name: &str, at: &Cursor<'_>) -> Result<(), Trouble> {
    let further = |key: &&String| key.starts_with("x-");
    let mut plain = at.value().clone();
    let keys: Vec<String> = at.object()?.keys().filter(further).cloned().collect();
    keys.iter().for_each(|key| drop(plain.as_object_mut().and_then(|map| map.remove(key))));
    let at = &Cursor::new(&plain, at.path());
    at.fields(&SERVICE)?;
    refuse(at)?;
    let label = words::label(name);
    let container_name = Label::try_from(label.as_str()).ok().filter(|label| skeg_protocol::id::is_label(label));
    let container_name =
        container_name.ok_or_else(|| at.wrong("a service's name must be letters, digits, `-` and `_`, at most 63"))?;
    let mut pod = Pod { namespace: context.namespace.clone(), ..Pod::default() };
    let mut container = Container { name: container_name, ..Container::default() };
    image(context, at, &mut container)?;
    process(context, at, &mut container)?;
    security(at, &mut pod, &mut container)?;
    resources::read(at, &mut container)?;
    container.probes = health::read(at)?;
    lifecycle(at, &mut pod, &mut container)?;
    network(context, name, at, &mut pod)?;
    volumes::read(context, at, &mut pod, &mut container)?;
    labels(context, at, name, &mut pod)?;
    dependencies(context, at, &mut pod)?;
    let (replicas, own) = (replicas(at)?, own_name(at)?);
    let ports = at.items("ports")?;
    for index in 0..replicas {
        let mut one = pod.clone();
        one.name = pod_name(at, own.as_deref(), name, index)?;
        one.labels.push((label_of("container-number"), (index + 1).to_string()));
        let mut container = container.clone();
        for port in &ports {
            container.ports.push(read_port(port, index, pod.host_network)?);
        }
        expose(at, &mut container)?;
        one.containers.push(container);
        one.uid = Uid::default();
        one.validate().map_err(|invalid| Invalid { field: format!("{}: {}", at.path(), invalid.field), ..invalid })?;
        context.bundle.pods.push(one);
        if context.bundle.pods.len() > MAX_PODS {
            return Err(at.wrong(format!("brings the project to more than {MAX_PODS} pods")).into());
        }
    }
    Ok(())
}

/// Refuses what stands in fields that are read for one harmless value only.
fn refuse(at: &Cursor<'_>) -> Result<(), Fault> {
    at.only("privileged", &[json!(false)])?;
    at.only("oom_kill_disable", &[json!(false)])?;
    at.only("ipc", &[json!("private"), json!("shareable")])?;
    at.only("pid", &[json!("")])?;
    at.only("userns_mode", &[json!("host"), json!("")])?;
    Ok(())
}

fn image(context: &mut Context<'_>, at: &Cursor<'_>, container: &mut Container) -> Result<(), Fault> {
    let Some(reference) = at.get("image")? else {
        return Err(match at.get("build")? {
            Some(build) => build.wrong("is not done on a device: build the image elsewhere and name it with `image`"),
            None => at.wrong("must have an image"),
        });
    };
    if at.get("build")?.is_some() {
        context.bundle.notes.push(format!("{}.build is passed over: the image is not built here", at.path()));
    }
    if at.get("platform")?.is_some() {
        context.bundle.notes.push(format!("{}.platform is passed over: it is always the device's", at.path()));
    }
    let text = reference.text()?;
    container.image =
        (context.image)(text).map_err(|problem| Invalid { field: reference.path().to_owned(), problem })?;
    match at.word("pull_policy")? {
        "" | "missing" | "if_not_present" => {}
        "always" => drop(context.bundle.ask_anew.insert(text.to_owned())),
        "never" => container.pull_policy = PullPolicy::Never,
        _ => return Err(at.need("pull_policy")?.unsupported()),
    }
    Ok(())
}

/// Words of a command: a list as it is, or a text as a shell would split it.
pub(super) fn command(at: &Cursor<'_>) -> Result<Vec<String>, Fault> {
    match at.value() {
        Value::Array(items) => {
            let word = |(index, item)| Cursor::new(item, &format!("{}[{index}]", at.path())).scalar();
            items.iter().enumerate().map(word).collect()
        }
        _ => words::split(&at.scalar()?).ok_or_else(|| at.invalid("has a quote that is not closed")),
    }
}

fn process(context: &mut Context<'_>, at: &Cursor<'_>, container: &mut Container) -> Result<(), Trouble> {
    let words = |name| -> Result<Vec<String>, Fault> {
        let words = at.get(name)?.map(|words| command(&words)).transpose()?.unwrap_or_default();
        Ok(words.iter().map(|word| super::words::literal(word)).collect())
    };
    (container.command, container.args) = (words("entrypoint")?, words("command")?);
    if at.get("entrypoint")?.is_some() && container.command.is_empty() {
        // An empty entrypoint takes the image's away: the command stands alone.
        container.command = std::mem::take(&mut container.args);
    }
    let folder = at.word("working_dir")?;
    container.working_dir = Some(folder.to_owned()).filter(|folder| !folder.is_empty());
    let flag =
        |name| -> Result<bool, Fault> { Ok(at.get(name)?.map(|flag| flag.truth()).transpose()?.unwrap_or_default()) };
    (container.stdin, container.tty, container.init) = (flag("stdin_open")?, flag("tty")?, flag("init")?);
    container.security.read_only_root = flag("read_only")?;
    container.env = environment(context, at)?;
    Ok(())
}

fn environment(context: &mut Context<'_>, at: &Cursor<'_>) -> Result<Vec<EnvVar>, Trouble> {
    let mut out: Vec<(String, String)> = Vec::new();
    for file in at.items("env_file")? {
        file.fields(&Fields { read: &["path", "required", "format"], ignored: &[], unsupported: &[] })?;
        file.only("format", &[json!("raw")])?;
        let raw = file.get("format")?.is_some();
        let needed = file.get("required")?.map(|flag| flag.truth()).transpose()?.unwrap_or(true);
        let variables = &context.project.variables;
        out.extend(context.loader.env_file(file.need("path")?.text()?, raw, needed, variables)?);
    }
    let entries = at.get("environment")?.map(|map| map.object()).transpose()?;
    for (name, value) in entries.into_iter().flatten() {
        let value = match value {
            // A name alone takes its value from whoever brings the project up.
            Value::Null => context.project.variables.get(name).cloned(),
            value => Some(Cursor::new(value, &format!("{}.environment.{name}", at.path())).scalar()?),
        };
        out.retain(|(other, _)| other != name);
        out.extend(value.map(|value| (name.clone(), value)));
    }
    let variable = |(name, value): (String, String)| EnvVar { name, value: EnvValue::Text(words::literal(&value)) };
    Ok(out.into_iter().map(variable).collect())
}

fn security(at: &Cursor<'_>, pod: &mut Pod, container: &mut Container) -> Result<(), Fault> {
    let security = &mut container.security;
    if let Some(user) = at.get("user")? {
        let text = user.scalar()?;
        let numbers = text
            .split_once(':')
            .map_or((text.parse().ok(), None), |(user, group)| (user.parse().ok(), group.parse().ok()));
        match (numbers, text.contains(':')) {
            ((Some(user), Some(group)), true) => (security.user, security.group) = (Some(user), Some(group)),
            ((Some(user), None), false) => security.user = Some(user),
            _ => security.user_name = Some(text).filter(|text| !text.is_empty()),
        }
    }
    security.add_capabilities = at.each("cap_add", capability)?;
    security.drop_capabilities = at.each("cap_drop", capability)?;
    for option in at.items("security_opt")? {
        security_option(&option, security)?;
    }
    pod.supplemental_groups = at.each("group_add", |group| group.whole())?;
    pod.host_users = at.word("userns_mode")? == "host";
    for (name, value) in at.get("sysctls")?.map(|map| map.object()).transpose()?.into_iter().flatten() {
        let value = Cursor::new(value, &format!("{}.sysctls.{name}", at.path())).scalar()?;
        pod.sysctls.push((name.clone(), value));
    }
    container.devices = at.each("devices", device)?;
    Ok(())
}

fn security_option(at: &Cursor<'_>, security: &mut Security) -> Result<(), Fault> {
    match at.text()?.replace('=', ":").as_str() {
        // A process never gets more than its parent has.
        "no-new-privileges" | "no-new-privileges:true" | "label:disable" => Ok(()),
        "seccomp:unconfined" => {
            security.seccomp_unconfined = true;
            Ok(())
        }
        _ => Err(at.unsupported()),
    }
}

fn device(at: &Cursor<'_>) -> Result<Device, Fault> {
    at.fields(&Fields { read: &["source", "target", "permissions"], ignored: &[], unsupported: &[] })?;
    let path = at.need("source")?.text()?.to_owned();
    let container_path = match at.word("target")? {
        "" => path.clone(),
        target => target.to_owned(),
    };
    let permissions = at.get("permissions")?.map(|field| field.text()).transpose()?.unwrap_or("rwm");
    if let Some(bad) = permissions.chars().find(|c| !"rwm".contains(*c)) {
        return Err(at.wrong(format!("permission {bad:?} must be r, w or m")));
    }
    let has = |c| permissions.contains(c);
    Ok(Device { path, container_path, read: has('r'), write: has('w'), mknod: has('m') })
}

fn lifecycle(at: &Cursor<'_>, pod: &mut Pod, container: &mut Container) -> Result<(), Fault> {
    let grace = at.get("stop_grace_period")?.map(|grace| grace.duration()).transpose()?;
    pod.termination_grace_seconds = grace.map_or(GRACE, |millis| millis.div_ceil(1000));
    let stop_signal = match at.get("stop_signal")? {
        Some(name) => Some(signal::number(&name.scalar()?).ok_or_else(|| name.invalid("is no signal (signal(7))"))?),
        None => None,
    };
    container.lifecycle =
        Lifecycle { post_start: health::hook(at, "post_start")?, pre_stop: health::hook(at, "pre_stop")?, stop_signal };
    (pod.restart_policy, container.max_restarts) = restart(at)?;
    if let Some(logging) = at.get("logging")? {
        logging.fields(&Fields { read: &["driver"], ignored: &["options"], unsupported: &[] })?;
        // How much is kept and when it is rotated is the device's.
        logging.only("driver", &["", "json-file", "local", "journald"].map(Value::from))?;
    }
    Ok(())
}

/// What happens when the container ends, and after how many failures no more.
fn restart(at: &Cursor<'_>) -> Result<(RestartPolicy, Option<u32>), Fault> {
    let deployed = match at.get("deploy")? {
        Some(deploy) => deploy.get("restart_policy")?,
        None => None,
    };
    if let Some(policy) = deployed {
        policy.fields(&Fields {
            read: &["condition", "max_attempts"],
            ignored: &["delay", "window"],
            unsupported: &[],
        })?;
        let most = policy.get("max_attempts")?.map(|most| most.whole()).transpose()?;
        return match policy.word("condition")? {
            "none" => Ok((RestartPolicy::Never, None)),
            "on-failure" => Ok((RestartPolicy::OnFailure, most)),
            "" | "any" => Ok((RestartPolicy::Always, most)),
            _ => Err(policy.need("condition")?.invalid("must be none, on-failure or any")),
        };
    }
    let Some(policy) = at.get("restart")? else { return Ok((RestartPolicy::Never, None)) };
    let text = policy.scalar()?;
    let most = text.strip_prefix("on-failure:").map(str::parse);
    match (text.as_str(), most) {
        ("no" | "false", _) => Ok((RestartPolicy::Never, None)),
        ("always" | "unless-stopped", _) => Ok((RestartPolicy::Always, None)),
        ("on-failure", _) => Ok((RestartPolicy::OnFailure, None)),
        (_, Some(Ok(most))) => Ok((RestartPolicy::OnFailure, Some(most).filter(|most| *most > 0))),
        _ => Err(policy.invalid("must be no, always, unless-stopped, on-failure or on-failure:NUMBER")),
    }
}

fn network(context: &mut Context<'_>, name: &str, at: &Cursor<'_>, pod: &mut Pod) -> Result<(), Fault> {
    pod.hostname = at.get("hostname")?.map(|name| name.bounded()).transpose()?;
    pod.dns.servers =
        at.each("dns", |server| server.text()?.parse().map_err(|_| server.invalid("must be an IP address")))?;
    pod.dns.searches = at.each("dns_search", |domain| domain.bounded())?;
    pod.dns.options = at.each("dns_opt", |option| {
        heapless::String::try_from(option.text()?).map_err(|_| option.invalid("must have at most 63 bytes"))
    })?;
    pod.host_aliases = at.each("extra_hosts", extra_host)?;
    let mode = at.word("network_mode")?;
    if !mode.is_empty() && at.get("networks")?.is_some() {
        return Err(at.need("network_mode")?.wrong("must not be there beside networks"));
    }
    match mode {
        "host" => {
            pod.host_network = true;
            pod.dns.policy = DnsPolicy::Default;
            return Ok(());
        }
        "none" => {
            pod.no_network = true;
            return Ok(());
        }
        "" | "bridge" => {}
        _ => return Err(at.need("network_mode")?.unsupported()),
    }
    let mut networks: Vec<(String, Value)> = match at.get("networks")? {
        Some(map) => map.object()?.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        None => Vec::new(),
    };
    if networks.is_empty() {
        networks.push(("default".to_owned(), json!({})));
    }
    for (network, options) in networks {
        if network != "default" {
            context.declared("networks", &network, at)?;
        }
        let options = Cursor::new(&options, &format!("{}.networks.{network}", at.path()));
        let attachment = attachment(at, name, &network, &options)?;
        pod.networks.push(attachment);
        context.networks.insert(network);
    }
    Ok(())
}

fn attachment(at: &Cursor<'_>, name: &str, network: &str, options: &Cursor<'_>) -> Result<Attachment, Fault> {
    options.fields(&Fields {
        read: &["aliases", "ipv4_address", "ipv6_address", "mac_address"],
        ignored: &["priority", "gw_priority"],
        unsupported: &["driver_opts", "interface_name", "link_local_ips"],
    })?;
    // By the service's own name and, where it has one, the container's.
    let mut aliases: Vec<Name> = vec![alias(name, at)?];
    if let Some(own) = own_name(at)? {
        aliases.push(alias(&own, at)?);
    }
    for further in options.items("aliases")? {
        aliases.push(alias(further.text()?, &further)?);
    }
    let mac = match options.get("mac_address")?.or(at.get("mac_address")?) {
        Some(mac) => Some(parse_mac(mac.text()?).ok_or_else(|| mac.invalid("must be six pairs of hex digits"))?),
        None => None,
    };
    let address = |name| {
        options
            .get(name)?
            .map(|at| at.text()?.parse::<IpAddr>().map_err(|_| at.invalid("must be an IP address")))
            .transpose()
    };
    let (ipv4, ipv6): (Option<IpAddr>, Option<IpAddr>) = (address("ipv4_address")?, address("ipv6_address")?);
    let ipv4 = match ipv4 {
        Some(IpAddr::V4(address)) => Some(address),
        None => None,
        Some(_) => return Err(options.need("ipv4_address")?.invalid("must be an IPv4 address")),
    };
    let ipv6 = match ipv6 {
        Some(IpAddr::V6(address)) => Some(address),
        None => None,
        Some(_) => return Err(options.need("ipv6_address")?.invalid("must be an IPv6 address")),
    };
    Ok(Attachment { network: network_name(network, options)?, aliases, ipv4, ipv6, mac })
}

fn alias(name: &str, at: &Cursor<'_>) -> Result<Name, Fault> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bounded = Name::try_from(name).ok().filter(|name| !name.is_empty() && name.bytes().all(plain));
    bounded.ok_or_else(|| at.wrong(format!("{name:?} must be letters, digits, `-`, `_` and `.`")))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut out = [0; 6];
    let parts: Vec<&str> = text.split([':', '-']).collect();
    if parts.len() != out.len() {
        return None;
    }
    for (byte, part) in out.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    Some(out)
}

/// `NAME=ADDRESS` or `NAME:ADDRESS`, where `host-gateway` is the device.
fn extra_host(at: &Cursor<'_>) -> Result<HostAlias, Fault> {
    let text = at.text()?;
    let parts = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = parts.ok_or_else(|| at.invalid("must be NAME=ADDRESS"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let ip = match address {
        "host-gateway" => None,
        address => Some(address.parse().map_err(|_| at.invalid("must end with an IP address or host-gateway"))?),
    };
    Ok(HostAlias { ip, hostnames: vec![alias(name, at)?] })
}

fn label_of(name: &str) -> String {
    format!("com.docker.compose.{name}")
}

fn labels(context: &Context<'_>, at: &Cursor<'_>, name: &str, pod: &mut Pod) -> Result<(), Fault> {
    for (kind, list) in [("labels", &mut pod.labels), ("annotations", &mut pod.annotations)] {
        for (key, value) in at.get(kind)?.map(|map| map.object()).transpose()?.into_iter().flatten() {
            let text = match value {
                Value::Null => String::new(),
                value => Cursor::new(value, &format!("{}.{kind}.{key}", at.path())).scalar()?,
            };
            list.push((key.clone(), text));
        }
    }
    pod.labels.push((label_of("project"), context.namespace.to_string()));
    pod.labels.push((label_of("service"), name.to_owned()));
    Ok(())
}

/// How many pods of the service run.
fn replicas(at: &Cursor<'_>) -> Result<u32, Fault> {
    let mut replicas = at.get("scale")?.map(|scale| scale.whole()).transpose()?.unwrap_or(1);
    if let Some(deploy) = at.get("deploy")? {
        deploy.fields(&Fields {
            read: &["mode", "replicas", "resources", "restart_policy"],
            // How a swarm goes about it.
            ignored: &["endpoint_mode", "labels", "placement", "rollback_config", "update_config"],
            unsupported: &[],
        })?;
        deploy.only("mode", &[json!("replicated"), json!("global")])?;
        if let Some(number) = deploy.get("replicas")? {
            replicas = number.whole()?;
        }
    }
    if replicas > 1 && at.get("container_name")?.is_some() {
        return Err(at.need("container_name")?.wrong("can only be had by one replica"));
    }
    Ok(replicas)
}

fn own_name(at: &Cursor<'_>) -> Result<Option<String>, Fault> {
    at.get("container_name")?.map(|name| Ok(name.text()?.to_owned())).transpose()
}

/// The name of a replica's pod.
fn pod_name(at: &Cursor<'_>, own: Option<&str>, service: &str, index: u32) -> Result<Name, Fault> {
    let text = match own {
        Some(own) => words::label(own),
        None => format!("{}-{}", words::label(service), index + 1),
    };
    Name::try_from(text.as_str()).map_err(|_| at.wrong(format!("the name {text:?} is too long")))
}

fn dependencies(context: &mut Context<'_>, at: &Cursor<'_>, pod: &mut Pod) -> Result<(), Fault> {
    let mut wanted: Vec<(String, Condition, bool)> = Vec::new();
    for (name, value) in at.get("depends_on")?.map(|map| map.object()).transpose()?.into_iter().flatten() {
        let entry = Cursor::new(value, &format!("{}.depends_on.{name}", at.path()));
        entry.fields(&Fields { read: &["condition", "required"], ignored: &["restart"], unsupported: &[] })?;
        let condition = match entry.word("condition")? {
            "" | "service_started" => Condition::Started,
            "service_healthy" => Condition::Healthy,
            "service_completed_successfully" => Condition::Completed,
            _ => return Err(entry.need("condition")?.invalid("is no condition that Compose knows")),
        };
        let needed = entry.get("required")?.map(|flag| flag.truth()).transpose()?.unwrap_or(true);
        wanted.push((name.clone(), condition, needed));
    }
    for link in at.items("links")? {
        let text = link.text()?;
        if text.split_once(':').is_some_and(|(service, alias)| service != alias) {
            return Err(link.unsupported());
        }
        wanted.push((text.split(':').next().unwrap_or_default().to_owned(), Condition::Started, true));
    }
    for (name, condition, needed) in wanted {
        let Some(service) = context.project.document["services"].get(&name) else {
            let why = if context.project.inactive.contains(&name) { "is in no active profile" } else { "is not there" };
            if needed {
                return Err(at.wrong(format!("depends on the service {name:?}, which {why}")));
            }
            continue;
        };
        let other = Cursor::new(service, &format!("services.{name}"));
        let own = own_name(&other)?;
        for index in 0..replicas(&other)?.min(MAX_PODS as u32) {
            let name = pod_name(&other, own.as_deref(), &name, index)?;
            pod.depends_on.push(Dependency { pod: name, condition, optional: !needed });
        }
    }
    Ok(())
}

fn read_port(at: &Cursor<'_>, replica: u32, host_network: bool) -> Result<Port, Fault> {
    at.fields(&Fields {
        read: &["target", "published", "host_ip", "protocol"],
        ignored: &["app_protocol", "mode", "name"],
        unsupported: &[],
    })?;
    let container_port: u16 = at.need("target")?.whole()?;
    let protocol = protocol(at, at.get("protocol")?.map(|field| field.text()).transpose()?.unwrap_or("tcp"))?;
    let host_ip = match at.get("host_ip")? {
        Some(address) => {
            let parsed: IpAddr = address.text()?.parse().map_err(|_| address.invalid("must be an IP address"))?;
            Some(parsed).filter(|address| !address.is_unspecified())
        }
        None => None,
    };
    let Some(published) = at.get("published")? else {
        return Err(at.wrong("needs a published port: a device does not choose one at random"));
    };
    let text = published.scalar()?;
    let (from, to) = text.split_once('-').unwrap_or((&text, &text));
    let parsed = (from.parse::<u16>(), to.parse::<u16>());
    let (Ok(from), Ok(to)) = parsed else { return Err(published.invalid("must be a port or a range of ports")) };
    let number = u32::from(from) + if from == to { 0 } else { replica };
    if number > to.into() {
        return Err(published.wrong(format!("{text} has no port left for replica {}", replica + 1)));
    }
    // With the device's own network there is nothing to publish.
    let host_port = u16::try_from(number).ok().filter(|_| !host_network);
    Ok(Port { name: Label::new(), container_port, host_port, host_ip, protocol })
}

fn protocol(at: &Cursor<'_>, text: &str) -> Result<Protocol, Fault> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(at.wrong(format!("protocol {text:?} must be tcp, udp or sctp"))),
    }
}

/// Ports that are only said to be there.
fn expose(at: &Cursor<'_>, container: &mut Container) -> Result<(), Fault> {
    for item in at.items("expose")? {
        let text = item.scalar()?;
        let (range, name) = text.split_once('/').unwrap_or((&text, "tcp"));
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) else {
            return Err(item.invalid("must be a port or a range of ports"));
        };
        let protocol = protocol(&item, name)?;
        if usize::from(to.saturating_sub(from)) >= MAX_PORTS {
            return Err(item.invalid(&format!("must stand for at most {MAX_PORTS} ports")));
        }
        for container_port in from..=to {
            let known = |port: &Port| port.container_port == container_port && port.protocol == protocol;
            if !container.ports.iter().any(known) {
                container.ports.push(Port { container_port, protocol, ..Port::default() });
            }
        }
    }
    Ok(())
}
