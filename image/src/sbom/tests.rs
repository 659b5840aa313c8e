//! The bill of a small image, with the programs of this source tree.

use std::fs;

use cocoon_measurements::FileEntry;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    compare::tests::{FILES, image},
    kernel::{Ingredients, KernelPlan},
    origin,
};

fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// An image that says to be built from this source tree.
fn house(change: impl FnOnce(&mut Manifest)) -> TempDir {
    let dir = image(&FILES);
    let path = dir.path().join("manifest.json");
    let mut manifest = Manifest::load(&path).unwrap();
    manifest.profile = ImageProfile::Dev;
    manifest.origin = Some(origin::of_source(source(), None).unwrap());
    let from = |path: &str| match path {
        "/init" => "cocoon-agent",
        "/lib/x86_64-linux-gnu/libc.so" => "debian",
        "/lib-of-another-order" => "libtorch",
        "/usr/bin/engine" => "somewhere",
        _ => "recipe",
    };
    let label = |entry: &mut FileEntry| entry.source = from(&entry.path).into();
    manifest.files.iter_mut().for_each(label);
    change(&mut manifest);
    fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    dir
}

fn document(dir: &TempDir) -> Value {
    serde_json::to_value(sbom(dir.path(), source()).unwrap()).unwrap()
}

fn component<'a>(bom: &'a Value, reference: &str) -> &'a Value {
    let components = bom["components"].as_array().unwrap();
    let found = components
        .iter()
        .find(|one| one["bom-ref"].as_str().unwrap().starts_with(reference));
    found.unwrap_or_else(|| panic!("{reference} is not in the bill"))
}

/// The reference of everything that something contains or needs, directly or not.
fn closure_of(bom: &Value, start: &str) -> BTreeSet<String> {
    let graph: BTreeMap<_, _> = bom["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["ref"].as_str().unwrap(), one["dependsOn"].as_array().unwrap()))
        .collect();
    let (mut found, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
    while let Some(next) = open.pop() {
        let needs = graph[next.as_str()]
            .iter()
            .map(|need| need.as_str().unwrap().to_owned());
        let new: Vec<_> = needs.filter(|need| found.insert(need.clone())).collect();
        open.extend(new);
    }
    found
}

#[test]
fn every_part_of_the_image_is_in_the_bill() {
    let bom = document(&house(|_| {}));
    assert_eq!(
        (&bom["bomFormat"], &bom["specVersion"]),
        (&"CycloneDX".into(), &"1.6".into())
    );
    let contained = closure_of(&bom, "image");
    let parts = [
        "file:kernel",
        "file:root.img",
        "pkg:cargo/aws-lc-rs@",
        "pkg:cargo/tch@",
        "pkg:deb/debian/linux-source-",
        "pkg:pypi/torch@2.11.0",
        "rust-std",
        "source:debian",
        "source:somewhere",
        "workspace:cocoon-engine",
        "workspace:cocoon-protocol",
    ];
    for part in parts {
        assert!(
            contained.iter().any(|reference| reference.starts_with(part)),
            "{part}"
        );
        assert_eq!(component(&bom, part)["scope"], "required", "{part}");
    }
    assert_eq!(
        component(&bom, "workspace:cocoon-agent")["evidence"]["occurrences"][0]["location"],
        "/init"
    );
    assert_eq!(
        component(&bom, "pkg:cargo/aws-lc-rs@")["hashes"][0]["alg"],
        "SHA-256"
    );
}

#[test]
fn what_only_made_the_image_or_tested_it_is_not_said_to_be_in_it() {
    let bom = document(&house(|_| {}));
    assert_eq!(component(&bom, "pkg:cargo/serde_derive@")["scope"], "excluded");
    assert_eq!(component(&bom, "pkg:cargo/cc@")["scope"], "excluded");
    let contained = closure_of(&bom, "image");
    let inside = |part: &str| contained.iter().any(|reference| reference.starts_with(part));
    for part in [
        "pkg:cargo/tempfile@",
        "workspace:cocoon-verify",
        "workspace:cocoon-launch",
        "pkg:cargo/serde_derive@",
    ] {
        assert!(!inside(part), "{part}");
    }
    let agent = closure_of(&bom, "workspace:cocoon-agent");
    assert!(
        !agent.iter().any(|reference| reference.contains("/tch@")),
        "{agent:?}"
    );
}

#[test]
fn references_are_unique_and_lead_somewhere_and_the_document_is_always_the_same() {
    let dir = house(|_| {});
    let bom = document(&dir);
    let references: Vec<_> = bom["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["bom-ref"].as_str().unwrap())
        .collect();
    let unique: BTreeSet<_> = references.iter().copied().chain(["image"]).collect();
    assert_eq!(unique.len(), references.len() + 1);
    assert!(references.is_sorted());
    for dependency in bom["dependencies"].as_array().unwrap() {
        let ends = [&dependency["ref"]]
            .into_iter()
            .chain(dependency["dependsOn"].as_array().unwrap());
        for end in ends {
            assert!(unique.contains(end.as_str().unwrap()), "{end}");
        }
    }
    let text = |bom: &Bom| serde_json::to_string(bom).unwrap();
    let again = sbom(dir.path(), source()).unwrap();
    assert_eq!(text(&sbom(dir.path(), source()).unwrap()), text(&again));
}

#[test]
fn a_builder_root_is_listed_as_tools_with_the_sources_of_the_firmware() {
    let dir = house(|manifest| manifest.origin.as_mut().unwrap().builder_root = Some(Digest32::of(b"root")));
    let bom = document(&dir);
    assert_eq!(component(&bom, "pkg:deb/debian/gcc@")["scope"], "excluded");
    assert!(
        closure_of(&bom, "file:firmware.fd")
            .iter()
            .any(|one| one.starts_with("pkg:deb/debian/edk2@"))
    );
    let own = document(&house(|_| {}));
    assert!(
        closure_of(&own, "file:firmware.fd").is_empty(),
        "the machine's own firmware"
    );
}

#[test]
fn an_image_for_gpus_has_its_driver_and_wheels_in_the_bill_and_no_other_has() {
    let bom = document(&house(|manifest| manifest.profile = ImageProfile::Gpu));
    let lock = Lock::load(source()).unwrap();
    let driver = &lock.given(ImageProfile::Gpu)[0];
    let component = component(&bom, "given:nvidia-driver");
    assert_eq!(component["version"], driver.version.as_str());
    assert_eq!(component["hashes"][0]["content"], driver.sha256.to_string());
    let inside = closure_of(&bom, "file:root.img");
    for part in [
        "given:nvidia-driver",
        "pkg:pypi/nvidia-cublas@",
        "pkg:pypi/nvidia-cudnn-cu13@",
    ] {
        assert!(inside.iter().any(|one| one.starts_with(part)), "{part}");
    }
    let others = closure_of(&document(&house(|_| {})), "file:root.img");
    assert!(!others.iter().any(|one| one.contains("nvidia")), "{others:?}");
}

/// So that one finds an image by a flaw's package and version.
#[test]
fn a_debian_library_is_in_the_bill_as_its_package() {
    let packaged = |version: &str| {
        let package = DebianPackage {
            name: "libc6".into(),
            version: version.into(),
        };
        document(&house(|manifest| {
            let debian = manifest.files.iter_mut().find(|file| file.source == "debian");
            debian.unwrap().package = Some(package);
            manifest.origin.as_mut().unwrap().builder_root = Some(Digest32::of(b"root"));
        }))
    };
    let lock = Lock::load(source()).unwrap();
    let locked = lock.builder.packages.iter().find(|input| input.name == "libc6");
    let locked = locked.unwrap();
    for (version, hashes) in [(locked.version.as_str(), 1), ("1.0-not-locked", 0)] {
        let bom = packaged(version);
        let reference =
            format!("pkg:deb/debian/libc6@{version}?arch=amd64&distro=debian").replace('+', "%2B");
        let found = component(&bom, &reference);
        assert_eq!(
            (&found["scope"], &found["type"]),
            (&"required".into(), &"library".into())
        );
        assert_eq!(
            found["evidence"]["occurrences"][0]["location"],
            "/lib/x86_64-linux-gnu/libc.so"
        );
        assert_eq!(found["hashes"].as_array().map_or(0, Vec::len), hashes);
        assert!(closure_of(&bom, "image").contains(&reference));
    }
}

/// Otherwise whoever looks for a flaw in Debian's kernel takes it for one that is not there, or the other way round.
#[test]
fn the_kernels_patches_are_in_the_bill_in_their_order_with_their_hashes() {
    let lock = Lock::load(source()).unwrap();
    let plan = KernelPlan::new(Ingredients::load(source(), &lock, &["kernel.config".into()]).unwrap());
    let inputs = plan.unwrap().inputs();
    let bom = document(&house(|manifest| manifest.inputs.extend(inputs.clone())));
    let patches = component(&bom, "pkg:deb/debian/linux-source-")["pedigree"]["patches"].clone();
    let patches: Vec<_> = patches.as_array().unwrap().iter().collect();
    assert!(patches.len() >= 2, "{patches:?}");
    let contained = closure_of(&bom, "file:kernel");
    let mut before = "";
    for patch in patches {
        let path = patch["diff"]["url"].as_str().unwrap();
        assert!(before < path && patch["type"] == "unofficial", "{patch}");
        before = path;
        let name = path.strip_prefix("image/recipe/").unwrap();
        let reference = format!("recipe:{name}");
        let hash = &component(&bom, &reference)["hashes"][0]["content"];
        let content = fs::read(source().join(path)).unwrap();
        assert_eq!(*hash, Digest32::of(&content).to_string());
        assert!(contained.contains(&reference));
    }
    let unpatched = document(&house(|_| {}));
    assert!(component(&unpatched, "pkg:deb/debian/linux-source-")["pedigree"].is_null());
}

/// Otherwise the bill would name versions that are not in the image.
#[test]
fn another_source_tree_than_the_images_is_refused() {
    let honest = origin::of_source(source(), None).unwrap();
    let (mut crates, mut inputs) = (honest.clone(), honest);
    crates.cargo_lock = Digest32::of(b"other");
    inputs.image_lock = Digest32::of(b"other");
    for (forged, file) in [(crates, "Cargo.lock"), (inputs, "image.lock")] {
        let other = house(|manifest| manifest.origin = Some(forged));
        let error = sbom(other.path(), source()).unwrap_err();
        assert!(matches!(error, SbomError::OtherSource { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
    let none = house(|manifest| manifest.origin = None);
    assert!(matches!(sbom(none.path(), source()), Err(SbomError::NoOrigin)));
}
