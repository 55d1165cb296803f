package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
)

// cri speaks to a container runtime: `cri --endpoint unix://SOCKET ps` lists containers, `purge` stops and removes all pods.
func cri(args []string) {
	fs := flag.NewFlagSet("cri", flag.ExitOnError)
	ep := fs.String("endpoint", "", "unix:///path/containerd.sock")
	fs.Parse(args[1:])
	ctx := context.Background()
	rs, err := remote.NewRemoteRuntimeService(ctx, *ep, 30*time.Second, noop.NewTracerProvider(), false)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
	switch fs.Arg(0) {
	case "ps":
		cs, err := rs.ListContainers(ctx, &pb.ContainerFilter{})
		if err != nil {
			fmt.Fprintln(os.Stderr, "cri:", err)
			os.Exit(1)
		}
		for _, c := range cs {
			fmt.Println(c.Id, c.State, c.Labels["io.kubernetes.pod.namespace"]+"/"+c.Labels["io.kubernetes.pod.name"], c.Metadata.Name, c.Image.Image)
		}
	case "purge":
		sb, err := rs.ListPodSandbox(ctx, &pb.PodSandboxFilter{})
		if err != nil {
			fmt.Fprintln(os.Stderr, "cri:", err)
			os.Exit(1)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		rc := 0
		for _, s := range sb {
			wg.Add(1)
			go func() {
				defer wg.Done()
				err := rs.StopPodSandbox(ctx, s.Id)
				if err == nil {
					err = rs.RemovePodSandbox(ctx, s.Id)
				}
				if err != nil {
					mu.Lock()
					rc = 1
					mu.Unlock()
					fmt.Fprintln(os.Stderr, "cri:", s.Metadata.Name, err)
				}
			}()
		}
		wg.Wait()
		os.Exit(rc)
	default:
		fmt.Fprintln(os.Stderr, "usage: cri --endpoint unix://SOCK {ps|purge}")
		os.Exit(2)
	}
}
