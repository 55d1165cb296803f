//! `cargo xtask e2e`: installs Cistern on a real cluster as an administrator would, and runs the tests of the whole flow.

use crate::cluster::layout::Layout;
use crate::process::{cargo, output, root, show};
use crate::{cluster, image, tools};
use anyhow::{Context, Result};
use std::path::Path;
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

    let layout = Layout::new(arguments.net, None)?;
    cluster::up(&layout)?;
    let tested = test(arguments, &image, &archive, &layout);
    match arguments.keep {
        true => tested,
        false => cluster::down(&layout).and(tested),
    }
}

fn test(arguments: &Arguments, image: &(String, String), archive: &Path, layout: &Layout) -> Result<()> {
    cluster::load(layout, archive)?;
    install(layout, image)?;
    let mut test = cargo();
    test.args(["test", "--package", "cistern-e2e", "--test", "e2e"]);
    test.env("CISTERN_CLUSTER", cluster::description(layout));
    test.args(&arguments.filter).args(["--", "--test-threads=1", "--nocapture"]);
    show(&mut test)
}

/// Installs the chart, or brings it up to date on a cluster that was kept, and waits until the operator is ready.
fn install(layout: &Layout, (name, digest): &(String, String)) -> Result<()> {
    let (repository, tag) = name.rsplit_once(':').context("the image has no tag")?;
    // helm installs definitions once and never changes them.
    let definitions = root().join("charts/cistern/crds");
    let definitions = definitions.to_str().context("the checkout lies in a path of text")?;
    cluster::kubectl(layout, &["apply", "--server-side", "--force-conflicts", "--filename", definitions])?;
    let mut helm = Command::new(tools::layout::helm()?);
    helm.args(["upgrade", "--install", "cistern"]).arg(root().join("charts/cistern"));
    helm.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout=120s"]);
    helm.arg(format!("--set=image.repository={repository},image.tag={tag}"));
    // Another image of the same name is another pod.
    helm.arg(format!("--set-string=podAnnotations.digest={digest}"));
    // helm keeps what it learns of a cluster in the home of whoever runs it.
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        helm.env(name, layout.path("helm"));
    }
    let installed = output(helm.arg("--kubeconfig").arg(layout.kubeconfig()));
    if installed.is_err() {
        for words in [["get", "pods", "--output=wide"], ["logs", "deployment/cistern-operator", "--tail=50"]]
        {
            let words: Vec<&str> = ["--namespace", NAMESPACE].into_iter().chain(words).collect();
            println!("{}", cluster::kubectl(layout, &words).unwrap_or_else(|error| format!("{error:#}")));
        }
    }
    installed.map(drop)
}
