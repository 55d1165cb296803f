// csi-registrar tells the kubelet of a CSI driver, as kubernetes-csi/node-driver-registrar does and with the
// flags of that program that drivers' manifests use.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	reg "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	reg.UnimplementedRegistrationServer
	name, endpoint string
	stop           chan struct{}
}

func (s *server) GetInfo(context.Context, *reg.InfoRequest) (*reg.PluginInfo, error) {
	return &reg.PluginInfo{Type: reg.CSIPlugin, Name: s.name, Endpoint: s.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, st *reg.RegistrationStatus) (*reg.RegistrationStatusResponse, error) {
	if !st.PluginRegistered { // end, so that the kubelet restarts us and tries again (as the real one does)
		log.Printf("registration failed: %s", st.Error)
		close(s.stop)
	} else {
		log.Printf("registered %s", s.name)
	}
	return &reg.RegistrationStatusResponse{}, nil
}

func main() {
	addr := flag.String("csi-address", "/csi/csi.sock", "CSI socket, as seen here")
	kpath := flag.String("kubelet-registration-path", "", "CSI socket, as the kubelet sees it")
	rdir := flag.String("plugin-registration-path", "/registration", "the kubelet's plugins_registry")
	flag.Int("v", 0, "ignored")
	flag.Parse()
	c, err := grpc.NewClient("unix://"+*addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	info, err := csi.NewIdentityClient(c).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		log.Fatalf("GetPluginInfo: %v", err)
	}
	c.Close()
	sock := filepath.Join(*rdir, info.Name+"-reg.sock")
	os.Remove(sock)
	l, err := net.Listen("unix", sock)
	if err != nil {
		log.Fatal(err)
	}
	s := &server{name: info.Name, endpoint: *kpath, stop: make(chan struct{})}
	g := grpc.NewServer()
	reg.RegisterRegistrationServer(g, s)
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		select {
		case <-sig:
		case <-s.stop:
			time.Sleep(time.Second)
		}
		os.Remove(sock) // the kubelet deregisters the driver when the socket goes
		os.Exit(0)
	}()
	log.Printf("%s (%s) on %s", info.Name, info.VendorVersion, sock)
	log.Fatal(g.Serve(l))
}
