//! Data sets that look like those of real buckets: keys with dates, many small objects, a few large ones,
//! headers, metadata and tags; the same for the same seed.

use bytes::Bytes;
use cistern_bucket::{Attributes, Bucket, ErrorKind, Key, PutOptions, Result};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{Random, hostile};

/// One object before it is put anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// Its contents.
    pub content: Bytes,
    /// Its headers, metadata and tags.
    pub attributes: Attributes,
}

/// What contents are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texture {
    /// Bytes that no program can compress.
    Random,
    /// Lines of JSON that compress about as well as logs do.
    Text,
}

const KINDS: [(&str, &str, Texture); 5] = [
    ("orders", "json", Texture::Text),
    ("invoices", "pdf", Texture::Random),
    ("logs", "log", Texture::Text),
    ("images", "jpg", Texture::Random),
    ("exports", "csv", Texture::Text),
];

const WORDS: [&str; 24] = [
    "order",
    "customer",
    "status",
    "shipped",
    "pending",
    "total",
    "currency",
    "EUR",
    "address",
    "street",
    "invoice",
    "created",
    "updated",
    "quantity",
    "article",
    "discount",
    "warehouse",
    "carrier",
    "tracking",
    "country",
    "Berlin",
    "Lisboa",
    "Kyoto",
    "Nairobi",
];

/// `size` bytes that belong to `seed`.
pub fn content(texture: Texture, seed: u64, size: usize) -> Bytes {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(size + 128);
    match texture {
        Texture::Random => {
            bytes.resize(size, 0);
            random.fill(&mut bytes);
        }
        Texture::Text => {
            while bytes.len() < size {
                let (name, value) = (random.pick(&WORDS), random.pick(&WORDS));
                let line = format!("{{\"id\":{},\"{name}\":\"{value}\"}}\n", random.below(10_000_000));
                bytes.extend_from_slice(line.as_bytes());
            }
            bytes.truncate(size);
        }
    }
    bytes.into()
}

/// `count` objects of 0 to 32 KiB, most of them small, with keys like `orders/2026/11/22/orders-000123.json`.
pub fn natural(seed: u64, count: usize) -> impl Iterator<Item = Object> {
    let mut random = Random::new(seed);
    (0..count).map(move |number| {
        let (kind, extension, texture) = KINDS[random.below(KINDS.len() as u64) as usize];
        let (year, month, day) = (2024 + random.below(3), 1 + random.below(12), 1 + random.below(28));
        let key = format!("{kind}/{year}/{month:02}/{day:02}/{kind}-{number:06}.{extension}");
        // Half of all are below 1 KiB, as in most buckets; every hundredth is empty.
        let limit = 1 << (7 + random.below(9));
        let size = if random.one_in(100) { 0 } else { random.below(limit) };
        Object {
            key: key.into(),
            content: content(texture, random.word(), size as usize),
            attributes: attributes(&mut random),
        }
    })
}

/// `count` objects of `size` bytes each, half of them compressible.
pub fn large(seed: u64, count: usize, size: usize) -> impl Iterator<Item = Object> {
    let mut random = Random::new(seed);
    (0..count).map(move |number| {
        let texture = if number % 2 == 0 { Texture::Random } else { Texture::Text };
        let key = format!("archives/volume-{number:03}.bin");
        Object {
            key: key.into(),
            content: content(texture, random.word(), size),
            attributes: attributes(&mut random),
        }
    })
}

/// `count` small objects under hostile keys (see [`hostile::keys`]).
pub fn odd(seed: u64, count: usize) -> impl Iterator<Item = Object> {
    let mut random = Random::new(seed);
    hostile::keys(seed, count).into_iter().map(move |key| {
        let size = random.below(200) as usize;
        Object {
            key,
            content: content(Texture::Text, random.word(), size),
            attributes: attributes(&mut random),
        }
    })
}

/// What an object carries besides its contents: every second one nothing but a media type.
fn attributes(random: &mut Random) -> Attributes {
    let mut attributes = Attributes {
        content_type: Some(
            random.pick(&["application/json", "text/plain", "image/jpeg", "application/pdf"]).into(),
        ),
        ..Attributes::default()
    };
    if random.one_in(2) {
        return attributes;
    }
    attributes.cache_control = random.one_in(3).then(|| "public, max-age=3600".into());
    attributes.content_disposition = random.one_in(4).then(|| "attachment; filename=\"report.pdf\"".into());
    attributes.content_encoding = random.one_in(8).then(|| "gzip".into());
    attributes.content_language = random.one_in(4).then(|| "pt-PT".into());
    for name in ["owner", "source-system", "checksum-note"] {
        if random.one_in(2) {
            attributes.meta.insert(name.into(), format!("{} {}", random.pick(&WORDS), random.below(1_000)));
        }
    }
    if random.one_in(3) {
        let tags =
            [("tier", random.pick(&["gold", "silver"])), ("team", random.pick(&["a b", "x/y", "c=d:e+f"]))];
        attributes.tags = Some(tags.map(|(name, value)| (name.to_string(), value.to_string())).into());
    }
    attributes
}

/// Puts objects into a bucket, up to 32 at a time; those above 8 MiB as parts where the store takes parts.
/// Yields the keys that the store refused, in no order.
///
/// # Errors
/// The first error that is no refusal.
pub async fn fill(bucket: &dyn Bucket, objects: impl Iterator<Item = Object> + Send) -> Result<Vec<Key>> {
    let puts = stream::iter(objects).map(|object| async move {
        match put(bucket, &object).await {
            Ok(()) => Ok(None),
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(Some(object.key)),
            Err(error) => Err(error),
        }
    });
    puts.buffer_unordered(32).try_filter_map(|refused| async { Ok(refused) }).try_collect().await
}

/// Puts one object, as parts if it is larger than 8 MiB and the store takes parts.
///
/// # Errors
/// As the store says.
pub async fn put(bucket: &dyn Bucket, object: &Object) -> Result<()> {
    const PART: usize = 8 << 20;
    let options = PutOptions { attributes: object.attributes.clone(), ..PutOptions::default() };
    if object.content.len() <= PART || !bucket.capabilities().multipart {
        bucket.put(&object.key, std::slice::from_ref(&object.content), &options).await?;
        return Ok(());
    }
    let upload = bucket.begin_upload(&object.key, &options).await?;
    let mut parts = Vec::new();
    for (number, start) in (1..).zip((0..object.content.len()).step_by(PART)) {
        let part = object.content.slice(start..object.content.len().min(start + PART));
        parts.push(bucket.upload_part(&upload, number, &[part]).await?);
    }
    bucket.complete_upload(&upload, &parts, &options).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cistern_bucket::Memory;

    #[tokio::test]
    async fn data_sets_are_repeatable_varied_and_put_as_they_are() {
        let all: Vec<Object> = natural(1, 500).chain(odd(1, 500)).chain(large(1, 2, 9 << 20)).collect();
        let again: Vec<Object> = natural(1, 500).chain(odd(1, 500)).chain(large(1, 2, 9 << 20)).collect();
        assert_eq!(all, again);
        assert!(all.iter().any(|object| object.content.is_empty()));
        assert!(all.iter().filter(|object| object.attributes.tags.is_some()).count() > 50);
        assert!(all.iter().filter(|object| !object.attributes.meta.is_empty()).count() > 200);
        let bucket = Memory::new("memory");
        assert_eq!(fill(&bucket, all.iter().cloned()).await.unwrap(), []);
        assert_eq!((bucket.len(), bucket.open_uploads()), (1_002, 0));
        for object in &all {
            assert_eq!(bucket.content(&object.key).unwrap(), object.content);
        }
    }
}
