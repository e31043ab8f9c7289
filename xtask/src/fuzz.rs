//! Fuzzing on the stable toolchain: libFuzzer with LLVM's coverage pass given by hand, so that no nightly compiler
//! is needed. Address checks are left to Rust itself: the fuzzed crates forbid unsafe code.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build::{cargo, cargo_progress};
use crate::ui::Ui;
use crate::{needs, process, root};

/// What cargo-fuzz would pass, less what only nightly takes.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
                     -Ccodegen-units=1 --cfg fuzzing";

/// The targets of the smoke test, each with its number of runs: some seconds.
const SMOKE: [(&str, u32); 6] = [
    ("decode", 200_000),
    ("config", 100_000),
    ("layer", 20_000),
    ("image", 100_000),
    ("documents", 20_000),
    ("names", 200_000),
];

fn folder() -> PathBuf {
    root().join("fuzz")
}

/// Builds a fuzz target; gives its program.
fn build(ui: &mut Ui, target: &str) -> Result<PathBuf> {
    if !folder().join("fuzz_targets").join(target).with_extension("rs").exists() {
        bail!("there is no fuzz target {target:?}; see {}", folder().join("fuzz_targets").display());
    }
    needs::packages(ui, &[needs::FUZZ])?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo();
    command.current_dir(folder()).env("RUSTFLAGS", FLAGS);
    // With a target named, build scripts and procedural macros are spared the flags.
    command.args(["build", "--release", "--locked", "--target", &host, "--bin", target]);
    process::succeed(ui, &mut command, cargo_progress())?;
    Ok(folder().join("target").join(host).join("release").join(target))
}

/// Runs a built target over its corpus.
fn fuzz(ui: &mut Ui, target: &str, program: &Path, corpus: &Path, arguments: &[String]) -> Result<()> {
    let artifacts = folder().join("artifacts");
    for folder in [corpus, &artifacts] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    match target {
        "decode" => seed_with_frames(corpus)?,
        "config" => seed_with_configuration(corpus)?,
        "layer" => seed_with_archive(corpus)?,
        "image" => seed_with_image(corpus)?,
        "documents" => seed_with_documents(corpus)?,
        _ => {}
    }
    let mut command = Command::new(program);
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).args(arguments).arg(corpus);
    process::succeed(ui, &mut command, |line| line.starts_with('#').then(|| line.to_owned()))
        .context("the fuzzer found a fault; the input's path is in the lines below")?;
    Ok(())
}

/// Puts the golden frames into the corpus: the fuzzer starts from real messages.
fn seed_with_frames(corpus: &Path) -> Result<()> {
    let golden = root().join("protocol/tests/wire/golden.txt");
    let text = std::fs::read_to_string(&golden).with_context(|| golden.display().to_string())?;
    for (index, block) in text.split("\n\n").skip(1).enumerate() {
        let digits: String =
            block.lines().filter(|line| line.starts_with("  ")).flat_map(str::split_whitespace).collect();
        let bytes: Result<Vec<u8>, _> =
            (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16)).collect();
        // The first byte of an input says how the rest is cut.
        let input = [vec![63], bytes.context("the golden file holds hex digits")?].concat();
        let path = corpus.join(format!("golden-{index:02}"));
        std::fs::write(&path, input).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Puts the default configuration into the corpus.
fn seed_with_configuration(corpus: &Path) -> Result<()> {
    let path = corpus.join("default");
    let text =
        serde_json::to_vec(&skeg_runtime::default_spec()).context("the default configuration has a JSON form")?;
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// Puts an archive with one of each kind of entry into the corpus.
fn seed_with_archive(corpus: &Path) -> Result<()> {
    let mut builder = tar::Builder::new(Vec::new());
    let entries = [
        (tar::EntryType::Directory, "dir/", ""),
        (tar::EntryType::Regular, "dir/file", ""),
        (tar::EntryType::Symlink, "link", "dir/file"),
        (tar::EntryType::Link, "dir/hard", "dir/file"),
        (tar::EntryType::Fifo, "fifo", ""),
        (tar::EntryType::Regular, "dir/.wh.gone", ""),
        (tar::EntryType::Regular, "dir/.wh..wh..opq", ""),
    ];
    for (kind, name, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_path(name)?;
        if !link.is_empty() {
            header.set_link_name(link)?;
        }
        let data: &[u8] = if name == "dir/file" { b"content" } else { b"" };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data)?;
    }
    let path = corpus.join("kinds");
    std::fs::write(&path, builder.into_inner()?).with_context(|| path.display().to_string())
}

/// Puts a manifest with its configuration into the corpus.
fn seed_with_image(corpus: &Path) -> Result<()> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let descriptor = |kind: &str| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": 1 });
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": descriptor("config.v1+json"), "layers": [descriptor("layer.v1.tar+gzip")] });
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [digest] },
        "config": { "Env": ["A=b"], "Cmd": ["x"], "ExposedPorts": { "80/tcp": {} }, "User": "1:2", "Labels": { "a": "b" } } });
    let path = corpus.join("image");
    std::fs::write(&path, format!("{manifest}\0{config}")).with_context(|| path.display().to_string())
}

/// Puts the examples of Kubernetes' and Compose's documents into the corpus.
fn seed_with_documents(corpus: &Path) -> Result<()> {
    for folder in ["protocol/kube/tests/examples", "protocol/kube/tests/peer"] {
        for entry in std::fs::read_dir(root().join(folder)).with_context(|| folder.to_owned())? {
            let path = entry?.path();
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            if path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml") {
                std::fs::copy(&path, corpus.join(name)).with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Fuzzes for some seconds.
pub(crate) fn run(target: &str, seconds: u64) -> Result<ExitCode> {
    let mut ui = Ui::new();
    ui.step(&format!("Builds the fuzz target {target}"));
    let program = build(&mut ui, target)?;
    ui.done("built");
    ui.step(&format!("Fuzzes for {seconds} s"));
    let corpus = folder().join("corpus").join(target);
    fuzz(&mut ui, target, &program, &corpus, &[format!("-max_total_time={seconds}")])?;
    ui.done("no fault found");
    Ok(ExitCode::SUCCESS)
}

/// The same number of runs from the same seed each time, for the tests.
pub(crate) fn smoke(ui: &mut Ui) -> Result<String> {
    let mut told = Vec::new();
    for (target, runs) in SMOKE {
        let program = build(ui, target)?;
        // A corpus of its own: what a developer's machine collected must not change the run.
        let corpus = tempfile::tempdir().context("temp folder")?;
        let arguments = [format!("-runs={runs}"), "-seed=1".to_owned(), "-max_len=16384".to_owned()];
        fuzz(ui, target, &program, corpus.path(), &arguments)?;
        told.push(format!("{runs} runs of {target}"));
    }
    Ok(format!("{}, no fault", told.join(", ")))
}
