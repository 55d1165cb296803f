//! Repositories made to harm: nothing outside of the target is reached, nothing runs away, and what is whole comes back.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use cistern_engine::{ExceptionKind, Overwrite};
use cistern_repository::{Id, LockKind, NodeKind, Snapshot, Time};
use scene::{Planter, Scene, assert_nothing_unfinished, base, incomplete, look};

/// A directory beside the target with something to lose.
fn bait(scene: &Scene) -> std::path::PathBuf {
    let outside = scene.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "precious").unwrap();
    outside
}

fn is_untouched(outside: &Path) {
    let found: Vec<_> = look(outside).into_iter().map(|(path, seen)| (path, seen.content)).collect();
    assert_eq!(found, [(b"victim".to_vec(), b"precious".to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_are_refused() {
    let scene = Scene::in_memory().await;
    let outside = bait(&scene);
    let names: [&[u8]; 9] =
        [b"", b".", b"..", b"../outside/victim", b"/etc/cistern", b"a/b", b"nul\0", b"/", b"../outside"];
    scene
        .plant(async |planter| {
            let mut nodes = vec![planter.file(b"good", b"good").await];
            for name in names {
                nodes.push(planter.file(name, b"harm").await);
            }
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            // The same as directories and links.
            let inner = vec![planter.file(b"victim", b"harm").await];
            let dir = planter.dir(b"../outside", inner);
            let below = planter.dir(b"directory", vec![dir, planter.link(b"..", b"/")]);
            nodes.push(below);
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            nodes
        })
        .await;
    let before: Vec<_> = std::fs::read_dir(scene.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let report = incomplete(scene.restore(|task| task.overwrite = Overwrite::Always).await);
    assert_eq!(report.exceptions.count(ExceptionKind::NameRefused), names.len() as u64 + 2, "{report:?}");
    let found: Vec<_> = look(&scene.out()).into_keys().collect();
    assert_eq!(found, [b"directory".to_vec(), b"good".to_vec()]);
    is_untouched(&outside);
    let after = std::fs::read_dir(scene.path("")).unwrap().count();
    assert_eq!(after, before.len() + 1, "nothing but the target appeared");
    assert!(!Path::new("/etc/cistern").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_way_is_never_followed() {
    for overwrite in [Overwrite::Always, Overwrite::IfChanged, Overwrite::IfNewer, Overwrite::Never] {
        let scene = Scene::in_memory().await;
        let outside = bait(&scene);
        scene
            .plant(async |planter| {
                let a = vec![planter.file(b"victim", b"harm").await, planter.file(b"new", b"harm").await];
                let mut a = a;
                a.sort_by(|x, y| x.name.cmp(&y.name));
                vec![
                    planter.dir(b"directory", a),
                    planter.file(b"file", b"harm").await,
                    planter.link(b"link", b"victim"),
                ]
            })
            .await;
        std::fs::create_dir(scene.out()).unwrap();
        symlink(&outside, scene.out().join("directory")).unwrap();
        symlink(outside.join("victim"), scene.out().join("file")).unwrap();
        symlink(&outside, scene.out().join("link")).unwrap();
        let result = scene.restore(|task| task.overwrite = overwrite).await;
        is_untouched(&outside);
        let is_link = |name: &str| scene.out().join(name).symlink_metadata().unwrap().is_symlink();
        // A link is as new as it was made; these are newer than what the snapshot holds.
        if matches!(overwrite, Overwrite::Never | Overwrite::IfNewer) {
            let report = incomplete(result);
            assert!(
                report.exceptions.count(ExceptionKind::Unwritable) >= 2,
                "both files below the directory"
            );
            assert!(is_link("directory") && is_link("file"), "{overwrite:?}");
        } else {
            let report = result.unwrap();
            assert!(!is_link("directory"), "{overwrite:?}: a directory takes the link's place");
            assert_eq!(std::fs::read(scene.out().join("directory/victim")).unwrap(), b"harm");
            assert!(!is_link("file"), "{report:?}");
            assert_eq!(report.plan.replace, 3, "the plan names all three");
        }
        assert_nothing_unfinished(&scene.out());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_one_part_is_no_way_for_the_next() {
    let scene = Scene::in_memory().await;
    let outside = bait(&scene);
    let repository = scene.open().await;
    let index = repository.index().await.unwrap();
    let lock = repository.lock(LockKind::Shared, &scene.cx().identity, Duration::ZERO).await.unwrap();
    let planter = Planter { writer: repository.writer(index, lock) };
    let target = outside.to_str().unwrap().as_bytes();
    let first = planter.tree(vec![planter.link(b"a", target)]);
    let inner = vec![planter.file(b"victim", b"harm").await];
    let second = planter.tree(vec![planter.dir(b"a", inner)]);
    let part = |tree: Id, name: &str| {
        let mut snapshot = Snapshot::new(Time::new(1_800_000_000, 0), tree, vec!["/".into(), name.into()]);
        snapshot.tags = vec!["run:x".into(), "parts:2".into()];
        snapshot
    };
    planter.writer.finish(vec![part(first, "1"), part(second, "2")]).await.unwrap();
    scene.restore(|_| ()).await.unwrap();
    is_untouched(&outside);
    assert_eq!(std::fs::read(scene.out().join("a/victim")).unwrap(), b"harm");
    assert!(!scene.out().join("a").symlink_metadata().unwrap().is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_links_and_counts_that_lie_do_no_harm() {
    let scene = Scene::in_memory().await;
    scene
        .plant(async |planter| {
            let mut huge = planter.file(b"huge", b"small").await;
            huge.size = u64::MAX;
            let mut tiny = planter.file(b"tiny", &[7; 100_000]).await;
            tiny.size = 1;
            // Says that it is another name of a file with other contents.
            let (mut one, mut two) =
                (planter.file(b"one", b"1111").await, planter.file(b"two", b"2222").await);
            (one.inode, one.links, one.device_id) = (7, u64::MAX, 1);
            (two.inode, two.links, two.device_id) = (7, u64::MAX, 1);
            let missing = cistern_repository::Node {
                content: Some([Id::of(b"nowhere")].into()),
                size: 7,
                ..base(b"missing", NodeKind::File)
            };
            let mut half = planter.file(b"half", b"the first half").await;
            half.content = Some([half.content.unwrap()[0], Id::of(b"nowhere")].into());
            let mut lost = planter.dir(b"lost", vec![]);
            lost.subtree = Some(Id::of(b"no tree"));
            let mut none = planter.dir(b"none", vec![]);
            none.subtree = None;
            let odd = base(b"odd", NodeKind::Irregular);
            let mut nodes = vec![half, huge, lost, missing, none, odd, one, tiny, two];
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            nodes
        })
        .await;
    let report = incomplete(scene.restore(|_| ()).await);
    let found: Vec<_> =
        look(&scene.out()).into_iter().map(|(path, seen)| (path, seen.content.len())).collect();
    let expected = [("huge", 5), ("one", 4), ("tiny", 100_000), ("two", 4)];
    assert_eq!(found, expected.map(|(path, length)| (path.as_bytes().to_vec(), length)));
    assert_eq!(std::fs::read(scene.out().join("two")).unwrap(), b"2222");
    assert_eq!(report.exceptions.count(ExceptionKind::Damaged), 4, "{report:?}");
    assert_nothing_unfinished(&scene.out());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_without_end_is_left_when_somebody_asks() {
    let scene = Scene::in_memory().await;
    scene
        .plant(async |planter| {
            // 2^40 files in 40 small trees.
            let mut node = vec![planter.file(b"f", b"x").await];
            for _ in 0..40 {
                let tree = planter.tree(node.clone());
                let dir = |name: &[u8]| cistern_repository::Node {
                    subtree: Some(tree),
                    mode: cistern_repository::node::mode::DIR | 0o755,
                    ..base(name, NodeKind::Dir)
                };
                node = vec![dir(b"a"), dir(b"b")];
            }
            node
        })
        .await;
    let cancel = scene.cancel.clone();
    let started = Instant::now();
    let (result, ()) = tokio::join!(scene.restore(|_| ()), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.cancel();
    });
    assert!(matches!(result, Err(cistern_engine::Error::Cancelled)), "{result:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(!scene.out().exists(), "nothing is placed before all is planned");
}
