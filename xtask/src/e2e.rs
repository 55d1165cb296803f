//! `cargo xtask e2e`: installs Cistern on a real cluster as an administrator would, and runs the tests of the whole flow.

use crate::process::{cargo, output, root, show};
use crate::{cluster, image};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the operator lives.
const NAMESPACE: &str = "cistern-system";

/// Run the tests of the whole flow on a real cluster (needs root)
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose names contain this
    filter: Option<String>,
    /// Leave the cluster as it is at the end, for a look at it
    #[arg(long)]
    keep: bool,
    /// Build Cistern in release mode, for figures
    #[arg(long)]
    release: bool,
    /// The cluster's number
    #[arg(long, value_name = "N", default_value_t = 77, value_parser = clap::value_parser!(u8).range(1..=254))]
    net: u8,
}

/// What `cluster.json` says.
#[derive(Deserialize)]
struct Places {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
    dir: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--package", "cistern"]);
    if arguments.release {
        build.arg("--release");
    }
    show(&mut build)?;
    let profile = if arguments.release { "release" } else { "debug" };
    let archive = root().join("target/cistern.tar");
    let image = image::make(&root().join("target").join(profile).join("cistern"), &archive)?;

    let description = cluster::up_for_tests(arguments.net)?;
    let tested = test(arguments, &image, &archive, &description);
    match (arguments.keep, tested) {
        (true, tested) => tested,
        (false, tested) => cluster::down_after_tests(arguments.net).and(tested),
    }
}

fn test(arguments: &Arguments, image: &str, archive: &Path, description: &Path) -> Result<()> {
    let places: Places =
        serde_json::from_slice(&std::fs::read(description)?).context("cannot read cluster.json")?;
    cluster::load_for_tests(arguments.net, archive)?;
    install(&places, image)?;
    let mut test = cargo();
    test.args(["test", "--package", "cistern-e2e", "--test", "e2e"]).env("CISTERN_CLUSTER", description);
    test.args(&arguments.filter).args(["--", "--test-threads=1", "--nocapture"]);
    show(&mut test)
}

/// Installs the chart, and waits until the operator is ready.
fn install(places: &Places, image: &str) -> Result<()> {
    let (repository, tag) = image.rsplit_once(':').context("the image has no tag")?;
    let mut helm = Command::new(&places.helm);
    helm.args(["upgrade", "--install", "cistern"]).arg(root().join("charts/cistern"));
    helm.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout=120s"]);
    helm.arg(format!("--set=image.repository={repository},image.tag={tag}"));
    // helm keeps what it learns of a cluster in the home of whoever runs it.
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        helm.env(name, places.dir.join("helm"));
    }
    let installed = output(helm.arg("--kubeconfig").arg(&places.kubeconfig));
    if installed.is_err() {
        for words in [["get", "pods", "--output=wide"], ["logs", "deployment/cistern-operator", "--tail=50"]]
        {
            let mut kubectl = Command::new(&places.kubectl);
            kubectl.arg("--kubeconfig").arg(&places.kubeconfig).args(["--namespace", NAMESPACE]).args(words);
            println!("{}", output(&mut kubectl).unwrap_or_else(|error| format!("{error:#}")));
        }
    }
    installed.map(drop)
}
