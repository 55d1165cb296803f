//! The roles in a cluster, against a recording API server: Jobs, the trigger, the kubectl plugin.

mod api_server;
mod job;
mod kubectl;
mod stopped;
