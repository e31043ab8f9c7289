//! The configuration file of a device, `/etc/skeg/skegd.toml`: what it may say, its defaults, its checks.
//!
//! Owns the words of the file. It reads files and nothing else: it starts nothing and changes nothing.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use skeg_images::Limits;

/// Where the file lies unless `--config` names another.
pub const DEFAULT_PATH: &str = "/etc/skeg/skegd.toml";
/// Largest configuration file in bytes; a larger one is refused unread.
const MAX_FILE: u64 = 1024 * 1024;
const DAY: u64 = 24 * 3600;

/// Everything that the file may say. An unknown word in it is an error that names its line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where this was read.
    #[serde(skip)]
    pub path: PathBuf,
    /// Name of this node; without one the host's name (see [`Config::node_name`]).
    pub node_name: Option<String>,
    /// Labels of this node, against which node selectors of its own projects are held (`skegd up`).
    pub labels: BTreeMap<String, String>,
    /// What survives reboots: identity, manifest, images, volumes, logs.
    pub state_dir: PathBuf,
    /// What does not: the control socket and the pods' folders in memory.
    pub run_dir: PathBuf,
    /// Parent cgroup of all pods, relative to the root of each hierarchy.
    pub cgroup: String,
    /// The controller that this node follows; without one the node keeps to what it has.
    pub controller: Option<Controller>,
    /// How registries that are not plain `https` are reached, one entry a host.
    pub registry: Vec<Registry>,
    /// A `config.json` as `docker login` writes it, whose `auths` hold credentials for registries. It is read anew
    /// for each pull; helper programs (`credsStore`, `credHelpers`) are not run.
    pub docker_config: Option<PathBuf>,
    /// How much of the disk images may take.
    pub images: Images,
    /// How much containers may log.
    pub logs: Logs,
    /// Addresses of pods and services.
    pub network: PodNetwork,
    /// What to set up when `skegd` is the first process of a board.
    pub appliance: Option<Appliance>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            path: DEFAULT_PATH.into(),
            node_name: None,
            labels: BTreeMap::new(),
            state_dir: "/var/lib/skeg".into(),
            run_dir: "/run/skeg".into(),
            cgroup: "skeg".into(),
            controller: None,
            registry: Vec::new(),
            docker_config: None,
            images: Images::default(),
            logs: Logs::default(),
            network: PodNetwork::default(),
            appliance: None,
        }
    }
}

/// How much of the disk images may take. Images of the current and the previous revision are never removed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// MiB that a pull leaves free; without it 64, or a twentieth of a smaller disk.
    pub reserve_mib: Option<u64>,
    /// When so much of the file system is used, images that nothing needs are removed …
    pub high_percent: u8,
    /// … the longest unused first, until no more than this is used.
    pub low_percent: u8,
    /// Images that nothing needs are removed after so many days.
    pub unused_days: u64,
    /// Entries of one layer's archive.
    pub layer_entries: u64,
    /// Folders of one layer; each takes about 100 bytes of memory while it is unpacked.
    pub layer_folders: u64,
    /// A layer may unpack to so many times its compressed size, and to 1 GiB in any case …
    pub layer_ratio: u64,
    /// … but never to more than so many GiB.
    pub layer_gib: u64,
}

impl Default for Images {
    fn default() -> Self {
        let limits = Limits::default();
        Images {
            reserve_mib: limits.reserve.map(|bytes| bytes >> 20),
            high_percent: limits.high_percent,
            low_percent: limits.low_percent,
            unused_days: limits.unused.as_secs() / DAY,
            layer_entries: limits.layer_entries,
            layer_folders: limits.layer_folders,
            layer_ratio: limits.layer_ratio,
            layer_gib: limits.layer_gib,
        }
    }
}

impl Images {
    /// The same for the image store.
    pub fn limits(&self) -> Limits {
        Limits {
            reserve: self.reserve_mib.map(|mib| mib.saturating_mul(1 << 20)),
            high_percent: self.high_percent,
            low_percent: self.low_percent,
            unused: Duration::from_secs(self.unused_days.saturating_mul(DAY)),
            layer_entries: self.layer_entries,
            layer_folders: self.layer_folders,
            layer_ratio: self.layer_ratio,
            layer_gib: self.layer_gib,
        }
    }
}

/// How much each container may log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logs {
    /// MiB at which a log is full: it is compressed, and a new one begins.
    pub size_mib: u64,
    /// Full logs that are kept.
    pub parts: usize,
    /// KiB a second; a container that writes more waits.
    pub rate_kib: u64,
    /// MiB that it may write at once after a silence.
    pub burst_mib: u64,
}

impl Default for Logs {
    fn default() -> Self {
        let crate::logs::Limits { size, parts, rate, burst } = crate::logs::Limits::default();
        Logs { size_mib: size >> 20, parts, rate_kib: rate >> 10, burst_mib: burst >> 20 }
    }
}

impl Logs {
    /// The same for the logs themselves. A size or rate of 0 is the smallest that there is.
    pub fn limits(&self) -> crate::logs::Limits {
        crate::logs::Limits {
            size: self.size_mib.max(1).saturating_mul(1 << 20),
            parts: self.parts,
            rate: self.rate_kib.max(1).saturating_mul(1 << 10),
            burst: self.burst_mib.saturating_mul(1 << 20),
        }
    }
}

/// Where the controller listens and what lets this node in for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    /// `host:port`; the host is a name, an IPv4 address or an IPv6 address in brackets.
    pub address: String,
    /// Further addresses of the same controller, tried after the first.
    #[serde(default)]
    pub more_addresses: Vec<String>,
    /// `http://[user:password@]host:port` of an HTTP proxy that leads to the controller (CONNECT). Images are pulled past
    /// it.
    pub proxy: Option<String>,
    /// The join token itself. Used until the node is enrolled.
    pub join_token: Option<String>,
    /// A file with the join token. Used until the node is enrolled; it may be absent afterwards.
    pub join_token_file: Option<PathBuf>,
}

/// How one image registry is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// `host` or `host:port`, as it stands in image references.
    pub host: String,
    /// Speaks HTTP without TLS.
    #[serde(default)]
    pub plain_http: bool,
    /// A PEM file of the certificate authorities that this host's certificate may come from, in place of the web's;
    /// `/etc/ssl/certs/ca-certificates.crt` stands for those of the system.
    pub ca_file: Option<PathBuf>,
    /// Hosts that are asked first, in this order, as `host[:port][/path]`: the repository's name follows the path. Each
    /// may have an entry of its own, which says how it is reached.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

impl Registry {
    fn problem(&self) -> Option<String> {
        let is_mirror = |mirror: &&String| {
            let reference = format!("{mirror}/x").parse::<skeg_images::Reference>();
            reference.is_ok_and(|reference| reference.names_a_registry())
        };
        if let Some(mirror) = self.mirrors.iter().find(|mirror| !is_mirror(mirror)) {
            return Some(format!("of {:?} has the mirror {mirror:?}, which is not host[:port][/path]", self.host));
        }
        let clash = self.plain_http && self.ca_file.is_some();
        clash.then(|| format!("of {:?} has both plain_http and ca_file: keep one of them", self.host))
    }
}

/// Addresses of pods and services: ranges that nobody else uses on the networks that the device can reach.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodNetwork {
    /// At least a /18: pods, services and networks with names share it.
    pub ipv4: Prefix,
    /// The first address of a /48.
    pub ipv6: Ipv6Addr,
}

impl Default for PodNetwork {
    fn default() -> Self {
        let ipv4 = Prefix { address: Ipv4Addr::new(10, 223, 0, 0), length: 16 };
        PodNetwork { ipv4, ipv6: Ipv6Addr::new(0xfd73, 0x6b65, 0x6700, 0, 0, 0, 0, 0) }
    }
}

impl PodNetwork {
    fn problem(&self) -> Option<(&'static str, String)> {
        let Prefix { address, length } = self.ipv4;
        let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        if !(8..=18).contains(&length) || u32::from(address) & host_bits != 0 {
            return Some(("network.ipv4", format!("{address}/{length} is not the first address of a /8 to /18")));
        }
        let below = u128::from(self.ipv6) << 48 != 0;
        below.then(|| ("network.ipv6", format!("{} is not the first address of a /48", self.ipv6)))
    }
}

/// What the first process of a board sets up before it starts the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Appliance {
    /// Kernel modules in load order: `NAME` is the file `/lib/modules/NAME.ko`.
    pub modules: Vec<String>,
    /// Block device with ext4, mounted on `state_dir`.
    pub state_device: Option<PathBuf>,
    /// Hardware watchdog that is petted while the agent answers.
    pub watchdog: Option<PathBuf>,
    /// How the board gets its address.
    pub network: Network,
    /// Interface for DHCP; without one the first that is not the loopback.
    pub interface: Option<String>,
}

/// How a board gets its address. In the file `"dhcp"`, `"none"`, or a table with a fixed address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NetworkWord")]
pub enum Network {
    /// Asks for an address and keeps asking.
    #[default]
    Dhcp,
    /// Leaves all interfaces but the loopback alone.
    None,
    /// Sets this address.
    Fixed(FixedNetwork),
}

/// A fixed IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedNetwork {
    /// Interface; without one the first that is not the loopback.
    pub interface: Option<String>,
    /// Address and prefix length, such as `10.0.2.15/24`.
    pub address: Prefix,
    /// Where the default route points.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, written to `/etc/resolv.conf`.
    #[serde(default)]
    pub nameservers: Vec<Ipv4Addr>,
}

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    /// The address of the interface.
    pub address: Ipv4Addr,
    /// Bits of the network, 0 to 32.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an IPv4 address with a prefix length, such as 10.0.2.15/24");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let length = length.parse().ok().filter(|length| *length <= 32).ok_or_else(wrong)?;
        Ok(Prefix { address, length })
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"dhcp\", \"none\" or { interface, address, gateway, nameservers }")]
enum NetworkWord {
    Word(String),
    Fixed(FixedNetwork),
}

impl TryFrom<NetworkWord> for Network {
    type Error = String;

    fn try_from(word: NetworkWord) -> Result<Self, String> {
        match word {
            NetworkWord::Fixed(fixed) => Ok(Network::Fixed(fixed)),
            NetworkWord::Word(word) => match word.as_str() {
                "dhcp" => Ok(Network::Dhcp),
                "none" => Ok(Network::None),
                _ => Err(format!("network {word:?} is neither \"dhcp\" nor \"none\" nor a table with an address")),
            },
        }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration {} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("configuration {} has {size} bytes; at most {MAX_FILE} are allowed", path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is not TOML, or has a word or value that is not known. The text names line and column.
    #[error("configuration {}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line, column and the line itself.
        message: String,
    },
    /// A value is of the right type and makes no sense.
    #[error("configuration {}: {field} {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The word in the file.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > MAX_FILE {
            return Err(ConfigError::Large { path: path.into(), size });
        }
        Config::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// Checks the text of a configuration; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.into(), message: error.to_string().trim().into() })?;
        match config.problem() {
            None => Ok(Config { path: path.into(), ..config }),
            Some((field, problem)) => Err(ConfigError::Value { path: path.into(), field, problem }),
        }
    }

    /// Names this node: the configured name, else the host's name.
    pub fn node_name(&self) -> String {
        match &self.node_name {
            Some(name) => name.clone(),
            None => rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase(),
        }
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        if let Some(name) = self.node_name.as_deref().filter(|name| !is_node_name(name)) {
            return Some(("node_name", format!("{name:?} is not a node name: 1 to 63 of a-z, 0-9, '-' and '.'")));
        }
        for (field, path) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if !path.is_absolute() || path.parent().is_none() {
                return Some((field, format!("{path:?} is not an absolute path of a folder below /")));
            }
        }
        if self.cgroup.is_empty() || self.cgroup.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Some(("cgroup", format!("{:?} is not a relative path without '.' and '..'", self.cgroup)));
        }
        if self.images.high_percent > 100 || self.images.low_percent > self.images.high_percent {
            return Some(("images.low_percent", "must not exceed high_percent, nor that 100".into()));
        }
        if let Some(controller) = &self.controller {
            let is_address = |address: &&String| {
                let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
                port.is_some_and(|(_, port)| port.parse::<u16>().is_ok())
            };
            let mut addresses = std::iter::once(&controller.address).chain(&controller.more_addresses);
            if let Some(address) = addresses.find(|address| !is_address(address)) {
                return Some(("controller.address", format!("{address:?} is not host:port")));
            }
            if controller.join_token.is_some() && controller.join_token_file.is_some() {
                return Some(("controller.join_token", "stands beside join_token_file: keep one of them".into()));
            }
        }
        if let Some(problem) = self.registry.iter().find_map(Registry::problem) {
            return Some(("registry", problem));
        }
        if let Some(problem) = self.network.problem() {
            return Some(problem);
        }
        let modules = self.appliance.iter().flat_map(|appliance| &appliance.modules);
        if let Some(name) = modules.into_iter().find(|name| name.is_empty() || name.contains(['/', '\0'])) {
            return Some(("appliance.modules", format!("{name:?} is not the name of a module")));
        }
        None
    }
}

fn is_node_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    name.len() <= 63 && name.bytes().all(inner) && ends(name.bytes().next()) && ends(name.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("skegd.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config, Config { path: "skegd.toml".into(), ..Config::default() });
        assert_eq!(config.state_dir, Path::new("/var/lib/skeg"));
        assert_eq!(config.cgroup, "skeg");
    }

    #[test]
    fn every_word_of_the_file_is_read() {
        let config = parse(
            r#"
            node_name = "kiln-7"
            state_dir = "/data"
            [controller]
            address = "192.0.2.1:7443"
            join_token_file = "/etc/skeg/join-token"
            [[registry]]
            host = "127.0.0.1:5000"
            plain_http = true
            [[registry]]
            host = "docker.io"
            mirrors = ["127.0.0.1:5000/hub", "mirror.gcr.io"]
            ca_file = "/etc/ssl/certs/ca-certificates.crt"
            [appliance]
            modules = ["virtio_net", "overlay"]
            state_device = "/dev/vda"
            watchdog = "/dev/watchdog"
            network = { interface = "eth0", address = "10.0.2.15/24", gateway = "10.0.2.2" }
            "#,
        )
        .unwrap();
        assert_eq!(config.node_name(), "kiln-7");
        assert!(config.registry[0].plain_http);
        assert_eq!(config.registry[1].mirrors, ["127.0.0.1:5000/hub", "mirror.gcr.io"]);
        let appliance = config.appliance.unwrap();
        let Network::Fixed(fixed) = appliance.network else { panic!("{:?}", appliance.network) };
        assert_eq!((fixed.address.address.octets(), fixed.address.length), ([10, 0, 2, 15], 24));
        assert_eq!(fixed.gateway, Some(Ipv4Addr::new(10, 0, 2, 2)));
    }

    #[test]
    fn limits_of_images_are_those_of_the_store_unless_the_file_says_otherwise() {
        assert_eq!(parse("").unwrap().images.limits(), Limits::default());
        let limits = parse("[images]\nreserve_mib = 8\nlayer_entries = 5\nlayer_gib = 2").unwrap().images.limits();
        let wanted = Limits { reserve: Some(8 << 20), layer_entries: 5, layer_gib: 2, ..Limits::default() };
        assert_eq!(limits, wanted);
    }

    #[test]
    fn dhcp_is_the_default_of_a_board() {
        assert_eq!(parse("[appliance]").unwrap().appliance.unwrap().network, Network::Dhcp);
        assert_eq!(parse("[appliance]\nnetwork = 'none'").unwrap().appliance.unwrap().network, Network::None);
    }

    #[test]
    fn errors_name_file_line_and_word() {
        let error = parse("node_name = \"a\"\nstate_dri = \"/data\"\n").unwrap_err();
        assert!(error.contains("skegd.toml") && error.contains("line 2") && error.contains("state_dri"), "{error}");
        let error = parse("[appliance]\nnetwork = 'wifi'\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("wifi"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for (text, field) in [
            ("node_name = 'Kiln 7'", "node_name"),
            ("state_dir = 'data'", "state_dir"),
            ("run_dir = '/'", "run_dir"),
            ("cgroup = '../skeg'", "cgroup"),
            ("[controller]\naddress = 'kiln'", "controller.address"),
            ("[controller]\naddress = 'a:1'\njoin_token = 'x'\njoin_token_file = '/y'", "controller.join_token"),
            ("[images]\nlow_percent = 90", "images.low_percent"),
            ("[[registry]]\nhost = 'a.lan'\nmirrors = ['b']", "registry of \"a.lan\" has the mirror \"b\""),
            ("[[registry]]\nhost = 'a.lan'\nplain_http = true\nca_file = '/x'", "has both plain_http and ca_file"),
            ("[network]\nipv4 = '10.223.0.0/19'", "network.ipv4"),
            ("[network]\nipv4 = '10.223.1.0/16'", "network.ipv4"),
            ("[network]\nipv6 = 'fd00::1'", "network.ipv6"),
            ("[appliance]\nmodules = ['../evil']", "appliance.modules"),
            ("[appliance]\nnetwork = { address = '10.0.2.15/33' }", "network"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(field), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nowhere/skegd.toml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/skegd.toml"));
    }
}
