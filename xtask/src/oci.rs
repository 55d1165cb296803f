//! Writes OCI images as archives, without a container engine: the same content gives the same bytes.
//!
//! Format: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>. Everything belongs to root and
//! bears the time 0; names are sorted.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{Builder, EntryType, Header};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Where Debian keeps the certificates of the authorities that it trusts.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The files of an image by their paths, without a leading slash.
#[derive(Default)]
pub struct Root(BTreeMap<String, Node>);

struct Node {
    mode: u32,
    content: Content,
}

enum Content {
    Directory,
    Link(String),
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// An image of one layer.
#[derive(Default)]
pub struct Image {
    /// Its full name with a tag other than `latest`, or Kubernetes asks a registry for it.
    pub name: String,
    pub root: Root,
    /// Empty: the pod says what to run.
    pub entrypoint: Vec<String>,
    /// Numbers, `user:group`; empty stands for root.
    pub user: String,
    pub environment: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

impl Root {
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, mode, Content::Directory);
    }

    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(path, 0o777, Content::Link(target.to_owned()));
    }

    pub fn bytes(&mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.insert(path, mode, Content::Bytes(bytes.into()));
    }

    /// A copy of a file of this machine; links are followed.
    pub fn file(&mut self, path: &str, source: &Path, mode: u32) -> Result<()> {
        let source = fs::canonicalize(source).with_context(|| format!("cannot find {}", source.display()))?;
        self.insert(path, mode, Content::File(source));
        Ok(())
    }

    /// A program with the libraries and the loader that it is linked with, at the places where it looks for them.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        self.file(path, source, 0o755)?;
        for library in libraries(source)? {
            self.file(library.trim_start_matches('/'), Path::new(&library), 0o755)?;
        }
        Ok(())
    }

    /// This machine's list of trusted authorities, at the place where Debian's programs look for it.
    pub fn certificates(&mut self) -> Result<()> {
        self.file(CERTIFICATES.trim_start_matches('/'), Path::new(CERTIFICATES), 0o644)
            .context("the Debian package ca-certificates is needed")
    }

    fn insert(&mut self, path: &str, mode: u32, content: Content) {
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            let node = Node { mode: 0o755, content: Content::Directory };
            self.0.entry(above.to_owned()).or_insert(node);
            parent = above;
        }
        self.0.insert(path.to_owned(), Node { mode, content });
    }

    /// Writes the layer: a tar whose entries are sorted, so that directories come before their content.
    fn write(&self, output: impl Write) -> Result<()> {
        let mut archive = Builder::new(output);
        for (path, node) in &self.0 {
            let mut header = header(node.mode);
            match &node.content {
                Content::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    archive.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Content::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    archive.append_link(&mut header, path, target)?;
                }
                Content::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, bytes.as_slice())?;
                }
                Content::File(source) => append(&mut archive, header, path, source)?,
            }
        }
        Ok(archive.into_inner()?.flush()?)
    }
}

impl Image {
    /// Writes the image and returns the digest of its manifest.
    pub fn write(&self, output: &Path) -> Result<String> {
        // The layer goes to a file first: its size and digest come before its content.
        let layer_file = output.with_extension("layer");
        let written = self.write_with(output, &layer_file);
        match fs::remove_file(&layer_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                written.and(Err(error).context("cannot remove a temporary file"))
            }
            _ => written,
        }
    }

    fn write_with(&self, output: &Path, layer_file: &Path) -> Result<String> {
        let create =
            |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
        let mut hashing =
            Hashing { inner: BufWriter::new(create(layer_file)?), hash: Sha256::new(), size: 0 };
        self.root.write(&mut hashing)?;
        let digest = hex::encode(hashing.hash.finalize());
        let layer = json!({"mediaType": LAYER, "digest": format!("sha256:{digest}"), "size": hashing.size});
        let config = self.config(&layer["digest"]).to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config.as_bytes()), "layers": [layer],
        })
        .to_string();
        let mut listed = descriptor(MANIFEST, manifest.as_bytes());
        let own = listed["digest"].as_str().unwrap_or_default().to_owned();
        // containerd takes the name from the first.
        listed["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name});
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string();

        let mut archive = Builder::new(BufWriter::new(create(output)?));
        let mut small = |path: String, bytes: &str| {
            let mut header = header(0o644);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes.as_bytes())
        };
        small("oci-layout".to_owned(), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        small("index.json".to_owned(), &index)?;
        small(blob(manifest.as_bytes()), &manifest)?;
        small(blob(config.as_bytes()), &config)?;
        append(&mut archive, header(0o644), &format!("blobs/sha256/{digest}"), layer_file)?;
        archive.into_inner()?.flush()?;
        Ok(own)
    }

    /// <https://github.com/opencontainers/image-spec/blob/main/config.md>
    fn config(&self, layer: &Value) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        let environment: Vec<&String> = std::iter::once(&path).chain(&self.environment).collect();
        let mut config = json!({"Env": environment, "WorkingDir": "/"});
        if !self.entrypoint.is_empty() {
            config["Entrypoint"] = json!(self.entrypoint);
        }
        if !self.user.is_empty() {
            config["User"] = json!(self.user);
        }
        if !self.labels.is_empty() {
            config["Labels"] = json!(self.labels);
        }
        json!({
            "created": "1970-01-01T00:00:00Z", "architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        })
    }
}

/// Counts and hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn header(mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn append(archive: &mut Builder<impl Write>, mut header: Header, path: &str, source: &Path) -> Result<()> {
    let file = File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
    let size = file.metadata()?.len();
    header.set_size(size);
    // No more than the header says, should the file grow meanwhile.
    Ok(archive.append_data(&mut header, path, BufReader::new(file).take(size))?)
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", hex::encode(Sha256::digest(bytes))), "size": bytes.len()})
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex::encode(Sha256::digest(bytes)))
}

/// The shared libraries and the loader of a program, as ldd(1) names them; none for a static one.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let said = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot start ldd")?;
    if String::from_utf8_lossy(&said.stderr).contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if !said.status.success() {
        bail!("ldd cannot read {}: {}", program.display(), String::from_utf8_lossy(&said.stderr).trim());
    }
    parse_ldd(&String::from_utf8_lossy(&said.stdout))
}

/// Lines are `name => /path (address)`, `/path/of/the/loader (address)`, or of what the kernel itself provides.
fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let path = line.rsplit(" => ").next().unwrap_or(line);
        if path == "not found" {
            bail!("a library is missing on this machine: {line}");
        }
        found.extend(path.split(" (").next().filter(|path| path.starts_with('/')).map(str::to_owned));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    /// The files of an archive by name.
    fn unpack(archive: &[u8]) -> BTreeMap<String, (Header, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().expect("it is a tar");
        entries
            .map(|entry| {
                let mut entry = entry.expect("the entry is whole");
                let name = entry.path().expect("the path is text").to_string_lossy().into_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("the entry is whole");
                (name, (entry.header().clone(), bytes))
            })
            .collect()
    }

    fn example(program: &Path) -> Image {
        let mut root = Root::default();
        root.file("opt/x/program", program, 0o755).expect("the program is there");
        root.link("opt/link", "x/program");
        root.bytes(&format!("long/{}", "n".repeat(200)), "content", 0o600);
        root.directory("tmp", 0o1777);
        Image {
            name: "registry.local/example:1".to_owned(),
            root,
            entrypoint: vec!["/opt/x/program".to_owned()],
            user: "65532:65532".to_owned(),
            environment: vec!["A=b".to_owned()],
            labels: [("key".to_owned(), "value".to_owned())].into(),
        }
    }

    #[test]
    fn every_digest_names_its_bytes_and_the_config_says_what_was_asked() {
        let folder = tempdir().expect("a folder can be made");
        let program = folder.path().join("program");
        fs::write(&program, "machine code").expect("a file can be written");
        let file = folder.path().join("image.tar");
        let own = example(&program).write(&file).expect("the image can be written");
        assert_eq!(fs::read_dir(folder.path()).expect("it lists").count(), 2, "no temporary file stays");

        let files = unpack(&fs::read(&file).expect("the image is there"));
        let mut blobs = 0;
        for (name, (_, bytes)) in &files {
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest, hex::encode(Sha256::digest(bytes)));
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3);
        assert_eq!(files["oci-layout"].1, br#"{"imageLayoutVersion":"1.0.0"}"#);
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("it is JSON");
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("it has a digest").replace(':', "/");
            let bytes = &files[&format!("blobs/{digest}")].1;
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        let index = parse(&files["index.json"].1);
        let listed = &index["manifests"][0];
        assert_eq!(listed["digest"], own);
        assert_eq!(listed["annotations"]["io.containerd.image.name"], "registry.local/example:1");
        let manifest = parse(&follow(listed));
        let config = parse(&follow(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(config["config"]["Entrypoint"], json!(["/opt/x/program"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Env"][1], "A=b");
        assert_eq!(config["config"]["Labels"]["key"], "value");

        let layer = unpack(&follow(&manifest["layers"][0]));
        assert_eq!(layer["opt/x/program"].1, b"machine code");
        assert_eq!(layer["opt/x/program"].0.mode().ok(), Some(0o755));
        assert_eq!(layer["opt/link"].0.link_name().ok().flatten().as_deref(), Some(Path::new("x/program")));
        assert_eq!(layer[&format!("long/{}", "n".repeat(200))].1, b"content");
        assert_eq!(layer["tmp/"].0.mode().ok(), Some(0o1777));
        assert!(layer.contains_key("opt/") && layer.contains_key("opt/x/"), "parents are there");
        for (name, (header, _)) in &layer {
            let (time, user, group) = (header.mtime().ok(), header.uid().ok(), header.gid().ok());
            assert_eq!((time, user, group), (Some(0), Some(0), Some(0)), "{name}");
        }
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let folder = tempdir().expect("a folder can be made");
        let write = |name: &str| {
            let program = folder.path().join(format!("program-{name}"));
            fs::write(&program, "machine code").expect("a file can be written");
            let file = folder.path().join(name);
            let digest = example(&program).write(&file).expect("the image can be written");
            (digest, fs::read(file).expect("the image is there"))
        };
        assert_eq!(write("one"), write("other"));
    }

    #[test]
    fn libraries_are_those_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let expected = ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text).expect("all are there"), expected);
        assert_eq!(parse_ldd("\tstatically linked\n").expect("all are there"), Vec::<String>::new());
        let error = parse_ldd("\tlibx.so => not found\n").expect_err("one is missing").to_string();
        assert!(error.contains("libx.so"), "{error}");
    }
}
