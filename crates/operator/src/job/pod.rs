//! The pod of a Job, with what the user says of it laid over what we say.

use super::*;

/// Settings of the flat template that belong to the container, by the name that they have there.
const OF_CONTAINER: [&str; 4] = ["lifecycle", "livenessProbe", "readinessProbe", "resources"];

impl Plan {
    /// The template of the Job's pod.
    pub(super) fn pod(&self, settings: &Settings) -> Result<Value, Failure> {
        let template = self.template.as_ref();
        let user = template.and_then(|template| template.spec.as_ref());
        let mut user = user.map(object).transpose()?.unwrap_or_default();

        let mut container = self.container(settings);
        let mut security = self.container_security();
        overlay(&mut security, user.remove("containerSecurityContext").unwrap_or_default());
        let mut pod_security = self.pod_security();
        overlay(&mut pod_security, user.remove("securityContext").unwrap_or_default());
        // Whoever asks for root by number means it.
        if [&pod_security, &security].iter().any(|context| context["runAsUser"] == 0) {
            pod_security["runAsNonRoot"] = false.into();
        }
        container["securityContext"] = security;
        append(&mut container["env"], user.remove("env"));
        append(&mut container["volumeMounts"], user.remove("volumeMounts"));
        let of_container = OF_CONTAINER.iter().filter_map(|name| user.remove_entry(*name)).collect();
        overlay(&mut container, Value::Object(of_container));

        let mut pod = json!({
            "restartPolicy": "Never",
            "serviceAccountName": self.name,
            // Whoever reports needs a token; nobody else gets one.
            "automountServiceAccountToken": self.reports.is_some(),
            "enableServiceLinks": false,
            "securityContext": pod_security,
            "containers": [container],
            "volumes": self.volumes(),
        });
        append(&mut pod["volumes"], user.remove("volumes"));
        overlay(&mut pod, user.into());

        let marks = template.and_then(|template| template.metadata.clone()).unwrap_or_default();
        let labels: BTreeMap<_, _> =
            marks.labels.unwrap_or_default().into_iter().chain(self.marks()).collect();
        Ok(json!({ "metadata": { "labels": labels, "annotations": marks.annotations }, "spec": pod }))
    }

    fn container(&self, settings: &Settings) -> Value {
        let mut mounts = vec![json!({ "name": FILES, "mountPath": FILES_DIR, "readOnly": true })];
        if self.mounts.iter().all(|mount| mount.mount_path != SCRATCH_DIR) {
            mounts.push(json!({ "name": SCRATCH, "mountPath": SCRATCH_DIR }));
        }
        mounts.extend(self.mounts.iter().map(|mount| {
            let read_only = self.read_only && mount.mount_path == DATA_DIR;
            json!(VolumeMount { read_only: mount.read_only.or(read_only.then_some(true)), ..mount.clone() })
        }));
        mounts.extend(self.storages.iter().enumerate().map(|(number, local)| {
            json!({ "name": storage_volume(number), "mountPath": local.mount_path, "subPath": local.sub_path })
        }));
        json!({
            "name": "cistern",
            "image": settings.image,
            "imagePullPolicy": settings.image_pull_policy,
            "args": ["job"],
            // Libraries put what they need for a moment there; all other files are read-only.
            "env": [{ "name": "TMPDIR", "value": SCRATCH_DIR }],
            "volumeMounts": mounts,
            // A program that died without a word leaves the end of its log.
            "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    }

    fn pod_security(&self) -> Value {
        match self.user {
            User::Nobody => json!({
                "runAsUser": 65534, "runAsGroup": 65534, "runAsNonRoot": true,
                "seccompProfile": { "type": "RuntimeDefault" },
            }),
            User::Owners => json!({
                "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
                "seccompProfile": { "type": "RuntimeDefault" },
            }),
        }
    }

    fn container_security(&self) -> Value {
        let capabilities = match self.user {
            User::Nobody => json!({ "drop": ["ALL"] }),
            User::Owners => json!({ "drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"] }),
        };
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": capabilities,
            "readOnlyRootFilesystem": true,
        })
    }

    fn volumes(&self) -> Value {
        let mut volumes = vec![self.files()];
        if self.volumes.iter().all(|volume| volume.name != SCRATCH) {
            volumes.push(json!({ "name": SCRATCH, "emptyDir": {} }));
        }
        volumes.extend(self.volumes.iter().map(|volume| json!(volume)));
        for (number, local) in self.storages.iter().enumerate() {
            let mut volume = json!({ "name": storage_volume(number) });
            let source = json!({
                "hostPath": local.host_path, "persistentVolumeClaim": local.persistent_volume_claim, "nfs": local.nfs,
            });
            overlay(&mut volume, source);
            volumes.push(volume);
        }
        volumes.into()
    }
}

fn storage_volume(number: usize) -> String {
    format!("kubestash-storage-{number}")
}
