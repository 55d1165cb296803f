//! `cistern operator`: runs the controllers in a cluster, or for one, until it is asked to stop.

use std::net::SocketAddr;

use cistern_bucket::{Class, Credentials};
use cistern_operator::{Error, Settings};
use clap::Args;

use crate::ambient;
use crate::cluster::args::Connection;
use crate::commands::{Outcome, Shell, identity};
use crate::environment::Environment;
use crate::failure::Failure;

/// Looks after the backups of a cluster.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A kubeconfig file is used where there is one, else the identity of the pod. BackupStorages without a Secret are opened with the
identity of the operator (AWS_ROLE_ARN and the like, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), never with that of its
machine.")]
pub struct Operator {
    /// Namespace to look after; may be repeated [default: all of them]
    #[arg(short = 'n', long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,
    /// kubeconfig file [env: KUBECONFIG] [default: ~/.kube/config, else the identity of the pod]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// Context of the kubeconfig file [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Image of the pods that are started: this program's own [env: CISTERN_IMAGE]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// When that image is pulled: Always, IfNotPresent or Never [default: as the cluster does]
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,
    /// Address for /healthz, /readyz and /metrics, such as 127.0.0.1:8080 [default: they are not served]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
    /// Act only while holding the lease of this namespace, so that of several operators one acts [default: the operator's
    /// own namespace in a pod; else there is no lease]
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "no_leader_election")]
    pub leader_election: Option<String>,
    /// Act without a lease: there must be no second operator
    #[arg(long)]
    pub no_leader_election: bool,
}

/// Where a pod finds the name of its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Runs the controllers.
///
/// # Errors
/// No cluster can be reached; the lease was lost.
pub async fn run(shell: &Shell, args: Operator) -> Outcome {
    let connection =
        Connection { kubeconfig: args.kubeconfig.clone(), context: args.context.clone(), namespace: None };
    let cluster = crate::cluster::connect(&connection).await?;
    let settings = settings(shell.access.environment(), args);
    match cistern_operator::run(cluster.client, settings, shell.cancel.clone()).await {
        Ok(()) => Ok(0),
        Err(error) => Err(failure(error)),
    }
}

fn settings(environment: &Environment, args: Operator) -> Settings {
    let mut settings = Settings::default();
    if let Some(image) = args.image.or_else(|| environment.first(&["CISTERN_IMAGE"])) {
        settings.image = image;
    }
    settings.image_pull_policy = args.image_pull_policy;
    settings.namespaces = (!args.namespaces.is_empty()).then(|| args.namespaces.into_iter().collect());
    settings.metrics_address = args.metrics_address;
    let own = || std::fs::read_to_string(NAMESPACE_FILE).ok().map(|name| name.trim().to_owned());
    settings.lease_namespace = if args.no_leader_election { None } else { args.leader_election.or_else(own) };
    let own = identity();
    // Two processes of one machine are two candidates.
    settings.identity = format!("{}-{}", own.hostname, own.pid);
    let keys = ambient::keys(environment).into_iter();
    settings.ambient = Credentials::Chain(keys.chain(ambient::identity(environment)).collect());
    settings
}

fn failure(error: Error) -> Failure {
    let class = match &error {
        Error::Serve(..) => Class::Invalid,
        Error::LeaseLost => Class::Busy,
        _ => Class::Unreachable,
    };
    Failure { class, code: crate::failure::exit_code(class), error: Box::new(error), hint: None }
}
