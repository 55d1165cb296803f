//! The network of a test cluster: a namespace of its own, and one cable from this machine to it.
//!
//! Bridges, routes, packet filters and ports of the cluster lie in the namespace and go with it, and several
//! clusters do not meet. Pods reach each other and this machine, and nothing beyond it.

use super::layout::Layout;
use crate::process::output;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Each containerd, kubelet and Kubernetes client of a cluster watches files.
const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
const INSTANCES_NEEDED: u64 = 1024;

/// Makes the network, or what is missing of it.
pub fn make(layout: &Layout) -> Result<()> {
    let (name, node) = (layout.name(), layout.node_address());
    if !layout.namespace().exists() {
        ip(&["netns", "add", &name])?;
    }
    if !Path::new("/sys/class/net").join(&name).exists() {
        ip(&["link", "add", &name, "type", "veth", "peer", "name", "node", "netns", &name])?;
    }
    let (node_network, host_network) = (format!("{node}/30"), format!("{}/30", layout.host_address()));
    for (inside, words) in [
        (true, vec!["link", "set", "lo", "up"]),
        (true, vec!["addr", "replace", &node_network, "dev", "node"]),
        (true, vec!["link", "set", "node", "up"]),
        (false, vec!["addr", "replace", &host_network, "dev", &name]),
        (false, vec!["link", "set", &name, "up"]),
        (true, vec!["route", "replace", "default", "via", &layout.host_address()]),
        (false, vec!["route", "replace", &layout.services(), "via", &node]),
        (false, vec!["route", "replace", &layout.pods(), "via", &node]),
    ] {
        if inside { ip(&[&["-n", &name], &words[..]].concat())? } else { ip(&words)? }
    }
    // Settings below net/ belong to the namespace of who writes them. The second lets services lead
    // to pods of the same bridge.
    let settings = "echo 1 > /proc/sys/net/ipv4/ip_forward
        if [ -e /proc/sys/net/bridge ]; then echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; fi";
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", layout.namespace().display())).args(["--", "sh", "-ec", settings]);
    output(&mut command)?;
    more_instances(layout)
}

/// Removes all of it, and sets back what was altered on the machine.
pub fn remove(layout: &Layout) -> Result<()> {
    remove_pods(layout)?;
    let name = layout.name();
    if Path::new("/sys/class/net").join(&name).exists() {
        ip(&["link", "delete", &name])?;
    }
    if layout.namespace().exists() {
        ip(&["netns", "delete", &name])?;
    }
    if let Ok(before) = fs::read(layout.path("inotify.before")) {
        fs::write(INSTANCES, before)?;
        fs::remove_file(layout.path("inotify.before"))?;
    }
    Ok(())
}

/// Removes the namespaces of pods that the runtime did not: CNI keeps a file for each interface of each pod.
fn remove_pods(layout: &Layout) -> Result<()> {
    let results = Path::new("/var/lib/cni/results");
    let Ok(entries) = fs::read_dir(results) else { return Ok(()) };
    let files: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let own = format!("{}-", layout.name());
    let mut pods = BTreeSet::new();
    for file in files.iter().filter(|file| file.starts_with(&own)) {
        let text = fs::read_to_string(results.join(file)).unwrap_or_default();
        let text: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        // `netns` in the results of newer plugins; older ones name it as the sandbox of the interface.
        for namespace in
            text.pointer("/result/interfaces").and_then(|list| list.as_array()).into_iter().flatten()
        {
            let path = namespace["sandbox"].as_str().unwrap_or_default();
            if path.starts_with("/run/netns/cni-") || path.starts_with("/var/run/netns/cni-") {
                let _ = output(Command::new("umount").arg("--lazy").arg(path));
                let _ = fs::remove_file(path);
            }
        }
        // <network>-<container>-<interface>: the container has a second file for its `lo`.
        pods.extend(file[own.len()..].split('-').next().map(|id| format!("-{id}-")));
    }
    for file in files.iter().filter(|file| pods.iter().any(|pod| file.contains(pod))) {
        fs::remove_file(results.join(file))?;
    }
    Ok(())
}

fn more_instances(layout: &Layout) -> Result<()> {
    let before = fs::read_to_string(INSTANCES).context("this machine has no inotify")?;
    if before.trim().parse::<u64>()? < INSTANCES_NEEDED {
        fs::write(layout.path("inotify.before"), before)?;
        fs::write(INSTANCES, INSTANCES_NEEDED.to_string())?;
    }
    Ok(())
}

fn ip(words: &[&str]) -> Result<()> {
    output(Command::new("ip").args(words)).map(drop)
}
