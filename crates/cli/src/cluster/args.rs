//! Arguments of the verbs that a cluster's pods run, and of those that people run on a cluster.

use std::path::PathBuf;

use cistern_api::job::{CREDENTIALS_DIR, DATA_DIR, TASK_FILE};
use clap::{Args, Subcommand, ValueHint};

/// Does the work of a Job.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Reads one document that says what is to be done, and the files PLACE/KEY with the credentials of each repository; a
repository without keys is opened with the identity of the pod. What was done stands in the status of the objects that
the document names, and in the termination message. Nothing else of the cluster is read or written.")]
pub struct Job {
    /// Document that says what is to be done, JSON
    #[arg(long, value_name = "FILE", default_value = TASK_FILE, value_hint = ValueHint::FilePath)]
    pub task: PathBuf,
    /// Folder of the credentials
    #[arg(long, value_name = "DIR", default_value = CREDENTIALS_DIR, value_hint = ValueHint::DirPath)]
    pub credentials: PathBuf,
    /// Where the target's volume is mounted; snapshots call it /kubestash-data in any case
    #[arg(long, value_name = "DIR", default_value = DATA_DIR, value_hint = ValueHint::DirPath)]
    pub data: PathBuf,
    /// File that takes the termination message
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", value_hint = ValueHint::FilePath)]
    pub termination_log: PathBuf,
    /// How long a result is offered to an API server that does not answer
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    pub report_wait: jiff::SignedDuration,
}

/// The cluster, and where in it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Connection {
    /// Namespace [default: that of the context]
    #[arg(short = 'n', long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig file [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// kubeconfig file [env: KUBECONFIG] [default: ~/.kube/config; in a pod, its own identity]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
}

/// Begins a backup now.
#[derive(Clone, Debug, Args)]
pub struct Trigger {
    /// The cluster.
    #[command(flatten)]
    pub connection: Connection,
    /// What is begun.
    #[command(flatten)]
    pub start: Start,
}

/// What a trigger begins.
#[derive(Clone, Debug, Args)]
pub struct Start {
    /// The BackupConfiguration
    #[arg(long, value_name = "NAME")]
    pub configuration: String,
    /// Its session
    #[arg(long, value_name = "NAME")]
    pub session: String,
    /// Follow the BackupSession to its end
    #[arg(long)]
    pub wait: bool,
}

/// Looks after the backups of a cluster.
#[derive(Clone, Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Cluster {
    /// The cluster.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What the kubectl plugin does.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Begin a backup now
    Trigger(Start),
    /// Suspend the schedules of a BackupConfiguration
    Pause {
        /// The BackupConfiguration
        configuration: String,
    },
    /// Let the schedules of a BackupConfiguration go on
    Resume {
        /// The BackupConfiguration
        configuration: String,
    },
    /// Show a BackupConfiguration with its sessions, repositories and last runs
    Describe {
        /// The BackupConfiguration
        configuration: String,
    },
    /// Print what the pods of a BackupSession or RestoreSession have said
    Logs {
        /// The BackupSession or RestoreSession
        session: String,
        /// Go on printing until the last of them ends
        #[arg(short, long)]
        follow: bool,
    },
    /// List Snapshots
    Snapshots {
        /// Only those of this Repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
}
