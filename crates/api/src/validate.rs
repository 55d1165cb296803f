//! Validates texts of manifests without a cluster: what each document says in itself, and beside the others.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::document::{Document, Object, read};
use crate::lower;
use crate::problem::{Problem, Problems};
use crate::world::World;

/// Namespace of documents that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What was found in some texts.
#[derive(Clone, Debug, Default)]
pub struct Validated {
    /// Number of documents of kinds of ours that were looked at.
    pub documents: usize,
    /// What is wrong, in the order of the texts.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong with a document of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the text.
    pub file: String,
    /// Number of the document in it, from 1.
    pub document: usize,
    /// Its kind, if it says one.
    pub kind: String,
    /// Its namespace, if it has one, and its name.
    pub object: String,
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
}

/// `file:document kind/name: field.path: what is wrong`
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.document)?;
        if !self.kind.is_empty() {
            write!(f, " {}/{}", self.kind, self.object)?;
        }
        if !self.problem.path.is_empty() {
            write!(f, ": {}", self.problem.path)?;
        }
        write!(f, ": {}", self.problem.message)
    }
}

/// Validates texts, each with its name. The catalogue of the chart is there unless they bring an Addon or Function of their
/// own with the same name.
pub fn validate(texts: &[(String, String)]) -> Validated {
    let mut found = Validated::default();
    let mut documents: Vec<(usize, usize, Document)> = Vec::new();
    for (text_number, (file, text)) in texts.iter().enumerate() {
        for (number, value) in read(text).into_iter().enumerate() {
            let number = number + 1;
            let value = match value {
                Ok(value) => value,
                Err(message) => {
                    let problem = Problem { path: String::new(), message, missing: false };
                    found.add(file, number, ("", ""), [problem]);
                    continue;
                }
            };
            let mut problems = Problems::default();
            let document = Document::parse(&value, DEFAULT_NAMESPACE, &mut problems);
            let said = |pointer: &str| value.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default();
            found.add(file, number, (said("/kind"), said("/metadata/name")), problems.0);
            documents.extend(document.map(|document| (text_number, number, document)));
        }
    }
    let mut seen = BTreeMap::new();
    for (text, number, document) in &documents {
        let place = format!("{}:{number}", texts[*text].0);
        let key = (&document.kind, &document.name);
        if let Some(first) = seen.get(&key).filter(|_| !matches!(document.object, Object::Other)) {
            let message = format!("the same object is in {first}, too");
            let problem = Problem { path: "metadata.name".into(), message, missing: false };
            found.add(&texts[*text].0, *number, (&document.kind, &document.name.name), [problem]);
        }
        seen.entry(key).or_insert(place);
    }
    let catalogue = crate::catalogue::documents();
    let world = World::of_documents(catalogue.iter().chain(documents.iter().map(|(.., document)| document)));
    for (text, number, document) in &documents {
        found.documents += usize::from(!matches!(
            document.object,
            Object::Other
                | Object::Secret(_)
                | Object::Namespace(_)
                | Object::Claim(_)
                | Object::Volume(_)
                | Object::StorageClass(_)
        ));
        let problems = lower::check(document, &world);
        found.add(&texts[*text].0, *number, (&document.kind, &document.name.name), problems);
    }
    let order: BTreeMap<&str, usize> =
        texts.iter().enumerate().map(|(i, (file, _))| (file.as_str(), i)).collect();
    found.findings.sort_by_key(|one| (order.get(one.file.as_str()).copied(), one.document));
    found
}

impl Validated {
    fn add(
        &mut self,
        file: &str,
        document: usize,
        (kind, object): (&str, &str),
        problems: impl IntoIterator<Item = Problem>,
    ) {
        self.findings.extend(problems.into_iter().map(|problem| Finding {
            file: file.to_owned(),
            document,
            kind: kind.to_owned(),
            object: object.to_owned(),
            problem,
        }));
    }
}
