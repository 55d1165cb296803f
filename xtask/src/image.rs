//! `cargo xtask image`: the container image of `cistern`, made without a container engine.
//!
//! It holds the program, the libraries that it is linked with, and the authorities that it trusts: no shell and
//! no package manager, so that there is nothing to start but the program.

use crate::oci::{Image, Root};
use crate::process::{cargo, root, show};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The user and group that the program runs as: nobody in particular, and not root.
const USER: &str = "65532:65532";

/// Make the container image, as an OCI archive
#[derive(clap::Args)]
pub struct Arguments {
    /// The archive to write [default: target/cistern.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take this program [default: build one in release mode]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => {
            show(cargo().args(["build", "--release", "--package", "cistern"]))?;
            root().join("target/release/cistern")
        }
    };
    let output = arguments.output.clone().unwrap_or_else(|| root().join("target/cistern.tar"));
    make(&binary, &output).map(drop)
}

/// Writes the image of this program. Gives what it is called, and its digest.
pub fn make(binary: &Path, output: &Path) -> Result<(String, String)> {
    let image = image(binary)?;
    let digest = image.write(output)?;
    println!("{} {digest}\nin {}", image.name, output.display());
    Ok((image.name, digest))
}

fn image(binary: &Path) -> Result<Image> {
    let version = env!("CARGO_PKG_VERSION");
    let mut root = Root::default();
    root.program("cistern", binary)?;
    root.certificates()?;
    root.bytes("etc/passwd", "root:x:0:0::/:/nonexistent\ncistern:x:65532:65532::/tmp:/nonexistent\n", 0o644);
    root.bytes("etc/group", "root:x:0:\ncistern:x:65532:\n", 0o644);
    root.bytes("etc/nsswitch.conf", "hosts: files dns\n", 0o644);
    root.directory("tmp", 0o1777);
    let label = |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
    Ok(Image {
        name: format!("registry.local/cistern:{version}"),
        root,
        entrypoint: vec!["/cistern".to_owned()],
        user: USER.to_owned(),
        environment: Vec::new(),
        labels: [label("title", "cistern"), label("version", version), label("licenses", "Apache-2.0")]
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs::File;

    #[test]
    fn the_image_holds_the_program_with_its_libraries_and_no_shell() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        // This very program stands for ours: it is linked in the same way.
        let own = std::env::current_exe().expect("a program knows its file");
        let file = folder.path().join("image.tar");
        let image = image(&own).expect("all that it needs is there");
        assert_eq!((image.user.as_str(), image.entrypoint[0].as_str()), ("65532:65532", "/cistern"));
        image.write(&file).expect("the image can be written");

        let mut names = BTreeSet::new();
        let mut archive = tar::Archive::new(File::open(file).expect("the image is there"));
        for entry in archive.entries().expect("it is a tar") {
            // The layer is the only blob that is itself a tar.
            let mut layer = tar::Archive::new(entry.expect("the entry is whole"));
            for file in layer.entries().into_iter().flatten().flatten() {
                names.insert(file.path().expect("the path is text").to_string_lossy().into_owned());
            }
        }
        for needed in ["cistern", "etc/ssl/certs/ca-certificates.crt", "etc/passwd", "tmp/"] {
            assert!(names.contains(needed), "{needed} is missing in {names:?}");
        }
        assert!(names.iter().any(|name| name.contains("/libc.so") || name.contains("/ld-")), "{names:?}");
        let programs: Vec<&String> = names
            .iter()
            .filter(|name| !name.ends_with('/') && !name.contains("lib") && !name.starts_with("etc/"))
            .collect();
        assert_eq!(programs, ["cistern"], "nothing else can be started");
    }
}
