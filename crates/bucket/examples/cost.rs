//! Measures what requests cost this process in CPU time, against a running S3 server.
//!
//! `cost ENDPOINT ACCESS_KEY SECRET_KEY [BUCKET]` creates objects in the bucket (default `cost`) and prints
//! microseconds of user and system time per request. Without arguments, the server is a child process that
//! answers from memory what a store would say, so that nothing but the client is measured.

#![expect(clippy::print_stdout, reason = "this is a program")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to report")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cistern_bucket::{Bucket, Credentials, GetOptions, Key, ListRequest, PutOptions, S3, S3Config};
use futures::{StreamExt, stream};

/// User and system time of this process, in the kernel's ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

async fn measure<F: Future<Output = ()>>(
    what: &str,
    count: usize,
    in_flight: usize,
    work: impl Fn(usize) -> F,
) {
    let mut costs = Vec::new();
    let mut wall = Duration::ZERO;
    for _ in 0..5 {
        let (before, started) = (cpu(), Instant::now());
        stream::iter(0..count).map(&work).buffer_unordered(in_flight).collect::<Vec<()>>().await;
        costs.push((cpu() - before).as_secs_f64() * 1e6 / count as f64);
        wall += started.elapsed();
    }
    costs.sort_by(f64::total_cmp);
    let rate = (5 * count) as f64 / wall.as_secs_f64();
    println!("{what:24} {:8.1} µs CPU (from {:.1} to {:.1}), {rate:.0}/s", costs[2], costs[0], costs[4]);
}

/// Answers every request on one connection as a store would.
fn respond(stream: TcpStream, page: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let small = vec![7; 4_096];
    let large = vec![7; 16 << 20];
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header == "\r\n" {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let body = match line.as_str() {
            line if line.starts_with("PUT") => &[],
            line if line.contains("list-type=2") => page,
            line if line.contains("/large/") => &large[..],
            _ => &small[..],
        };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nx-amz-id-2: Uuag1LuByRx9e6j5Onimru9pO4ZVKnJ2Qz7/C1NPcfTWAtRPfTaOFg==\r\n\
             x-amz-request-id: 656c76696e6727732072657175657374\r\nDate: Sun, 22 Nov 2026 17:50:00 GMT\r\n\
             Last-Modified: Sun, 22 Nov 2026 17:00:00 GMT\r\nETag: \"25f9e794323b453885f5181f1b624d0b\"\r\n\
             x-amz-tagging-count: 1\r\nx-amz-meta-owner: ada\r\nAccept-Ranges: bytes\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {}\r\nServer: AmazonS3\r\n\r\n",
            body.len()
        )
        .into_bytes();
        if !line.starts_with("HEAD") {
            answer.extend_from_slice(body);
        }
        writer.write_all(&answer)?;
    }
}

/// A server in this process, which the parent stops by closing our standard input.
fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    let mut page =
        String::from("<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>");
    for i in 0..1_000 {
        page.push_str(&format!(
            "<Contents><Key>small/object-with-a-usual-name-{i:05}</Key>\
             <LastModified>2026-11-22T17:00:00.000Z</LastModified>\
             <ETag>&quot;25f9e794323b453885f5181f1b624d0b&quot;</ETag><Size>4096</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>"
        ));
    }
    page.push_str("</ListBucketResult>");
    let page: &'static [u8] = page.leak().as_bytes();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || respond(stream, page));
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (endpoint, access_key, secret_key, rest) = match &args[..] {
        [serving] if serving == "serve" => return serve(),
        [] => {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .arg("serve")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut endpoint = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
            // Its standard input stays open as long as this process lives.
            std::mem::forget(child);
            (endpoint.trim().to_owned(), "id".to_owned(), "secret".to_owned(), vec![])
        }
        [endpoint, access_key, secret_key, rest @ ..] => {
            (endpoint.clone(), access_key.clone(), secret_key.clone(), rest.to_vec())
        }
        _ => return println!("usage: cost [ENDPOINT ACCESS_KEY SECRET_KEY [BUCKET]]"),
    };
    let mut config = S3Config::new(rest.first().map_or("cost", String::as_str));
    config.endpoint = Some(endpoint.parse().unwrap());
    config.region = Some("us-east-1".into());
    config.credentials = Credentials::fixed(access_key, secret_key);
    config.insecure_tls = true;
    let bucket = S3::connect(config).unwrap();
    bucket.create().await.unwrap();
    let key = |i: usize| Key::from(format!("small/object-with-a-usual-name-{:05}", i % 1_000));
    let content = Bytes::from(vec![7; 4_096]);
    let put = |i| {
        let (bucket, content, key) = (&bucket, content.clone(), key(i));
        async move { drop(bucket.put(&key, &[content], &PutOptions::default()).await.unwrap()) }
    };
    stream::iter(0..1_000).map(put).buffer_unordered(32).collect::<Vec<()>>().await;
    measure("GET 4 KiB, 64 in flight", 10_000, 64, |i| {
        let (bucket, key) = (&bucket, key(i));
        async move {
            let get = bucket.get(&key, &GetOptions::default()).await.unwrap();
            assert_eq!(get.body.bytes().await.unwrap().len(), 4_096);
        }
    })
    .await;
    measure("HEAD, 64 in flight", 10_000, 64, |i| {
        let (bucket, key) = (&bucket, key(i));
        async move { drop(bucket.head(&key).await.unwrap()) }
    })
    .await;
    measure("LIST page of 1,000", 200, 2, |_| async {
        let page = bucket.list(&ListRequest { prefix: "small/".into(), ..ListRequest::default() }).await;
        assert_eq!(page.unwrap().entries.len(), 1_000);
    })
    .await;
    let large: Vec<Bytes> = (0..16).map(|i| Bytes::from(vec![i; 1 << 20])).collect();
    for (what, sha256) in [("PUT 16 MiB, hash unknown", None), ("PUT 16 MiB, hash known", Some(()))] {
        let sha256 = sha256.map(|()| {
            let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            large.iter().for_each(|piece| context.update(piece));
            context.finish().as_ref().try_into().unwrap()
        });
        let options = PutOptions { sha256, ..PutOptions::default() };
        measure(what, 10, 2, |i| {
            let (bucket, large, options) = (&bucket, &large, &options);
            async move {
                drop(bucket.put(&Key::from(format!("large/{i}")), large, options).await.unwrap());
            }
        })
        .await;
    }
    measure("GET 16 MiB", 20, 2, |i| {
        let bucket = &bucket;
        async move {
            let key = Key::from(format!("large/{}", i % 10));
            let mut body = bucket.get(&key, &GetOptions::default()).await.unwrap().body;
            while let Some(bytes) = body.next().await {
                bytes.unwrap();
            }
        }
    })
    .await;
}
