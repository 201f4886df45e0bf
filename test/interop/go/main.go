// A client in Go, that prints "ok" and what held for each thing that did.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"slices"
	"time"

	memoryv1 "interop/gen/memory/v1"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

func main() {
	log.SetFlags(0)
	// It retries UNAVAILABLE: the call may have taken effect, which is why every change carries a request_id.
	serviceConfig, err := os.ReadFile(os.Args[2])
	must(err)
	connection, err := grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(string(serviceConfig)))
	must(err)
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	member := metadata.AppendToOutgoingContext(ctx, "x-tenant-id", "acme", "x-env", "dev", "x-user-id", "member")

	services := listServices(ctx, connection)
	check("lists the services by reflection", slices.Contains(services, "memory.v1.MemoryService"), services)
	roundTrip(member, connection)
	streamAndWatch(member, connection)
	readErrors(member, connection)
}

func roundTrip(ctx context.Context, connection *grpc.ClientConn) {
	memory := memoryv1.NewMemoryServiceClient(connection)
	conversation := memoryv1.NewConversationServiceClient(connection)
	thread := "go-" + newUUID()

	preferences, err := structpb.NewStruct(map[string]any{"tone": "short", "depth": 3.0})
	must(err)
	upserted, err := memory.UpsertSession(ctx, &memoryv1.UpsertSessionRequest{
		Session:   &memoryv1.Session{SurfaceId: "go", ThreadId: thread, Preferences: preferences},
		RequestId: newUUID(),
	})
	must(err)
	session := upserted.Session
	check("upserts a session", upserted.Created && session.Revision == 1, upserted)
	check("reads a Struct", session.Preferences.AsMap()["tone"] == "short", session.Preferences)

	request := &memoryv1.AppendMessagesRequest{
		SessionId: session.Id,
		Messages: []*memoryv1.Message{
			{Role: memoryv1.MessageRole_MESSAGE_ROLE_HUMAN, Content: "Grüße 👋"},
			{Role: memoryv1.MessageRole_MESSAGE_ROLE_ASSISTANT, Content: "Hello."},
		},
		RequestId: newUUID(),
	}
	appended, err := conversation.AppendMessages(ctx, request)
	must(err)
	check("appends messages", len(appended.Messages) == 2 && appended.Messages[1].Seq == 2, appended)
	again, err := conversation.AppendMessages(ctx, request)
	must(err)
	check("appends once for one request_id", again.Messages[0].Id == appended.Messages[0].Id, again)

	listed, err := conversation.ListMessages(ctx, &memoryv1.ListMessagesRequest{
		ThreadId: thread,
		Position: &memoryv1.ListMessagesRequest_AfterSeq{AfterSeq: 0},
	})
	must(err)
	check("lists messages", len(listed.Messages) == 2 && listed.Messages[0].Content == "Grüße 👋", listed)

	selection := &memoryv1.MessageSelection{Selection: &memoryv1.MessageSelection_LastN{LastN: 1}}
	forwarded, err := memory.ForwardBundle(ctx, &memoryv1.ForwardBundleRequest{
		Source: &memoryv1.ForwardBundleRequest_Inline{
			Inline: &memoryv1.InlineBundle{SourceThreadId: thread, Selection: selection},
		},
		TargetThreadId: thread + "-target",
		CreateTarget:   true,
		RequestId:      newUUID(),
	})
	must(err)
	check("forwards a bundle", forwarded.FirstSeq == 1 && forwarded.Bundle.MessageCount == 1, forwarded)
}

func streamAndWatch(ctx context.Context, connection *grpc.ClientConn) {
	conversation := memoryv1.NewConversationServiceClient(connection)
	thread := "go-" + newUUID()

	stream, err := conversation.StreamMessage(ctx)
	must(err)
	must(stream.Send(&memoryv1.StreamMessageRequest{Frame: &memoryv1.StreamMessageRequest_Open{Open: &memoryv1.StreamOpen{
		ThreadId: thread, Role: memoryv1.MessageRole_MESSAGE_ROLE_ASSISTANT, ClientId: "answer",
	}}}))
	answer, err := stream.Recv()
	must(err)
	check("opens a stream at its start", answer.GetOpened().GetSeq() == 1 && answer.GetOpened().DurableOffset == 0, answer)
	offset := int64(0)
	for _, text := range []string{"Grüße ", "👋"} {
		must(stream.Send(&memoryv1.StreamMessageRequest{Frame: &memoryv1.StreamMessageRequest_Chunk{
			Chunk: &memoryv1.StreamChunk{Offset: offset, Text: text},
		}}))
		offset += int64(len(text))
	}
	must(stream.Send(&memoryv1.StreamMessageRequest{
		Frame: &memoryv1.StreamMessageRequest_Finish{Finish: &memoryv1.StreamFinish{}},
	}))
	must(stream.CloseSend())
	for answer.GetFinished() == nil {
		answer, err = stream.Recv()
		must(err)
	}
	state := answer.GetFinished().Message.State
	check("finishes it", state == memoryv1.MessageState_MESSAGE_STATE_COMPLETE, answer)

	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := conversation.WatchThread(watching, &memoryv1.WatchThreadRequest{ThreadId: thread})
	must(err)
	var first, last *memoryv1.ThreadEvent
	text := ""
	for {
		response, err := watch.Recv()
		must(err)
		if response.Event.GetBookmark() != nil {
			break
		}
		if first == nil {
			first = response.Event
		}
		last = response.Event
		text += last.GetTextDelta().GetText()
	}
	check("watches it", text == "Grüße 👋" && first.GetAppended() != nil && last.GetFinished() != nil, last)
}

func readErrors(ctx context.Context, connection *grpc.ClientConn) {
	memory := memoryv1.NewMemoryServiceClient(connection)
	_, err := memory.UpsertSession(ctx, &memoryv1.UpsertSessionRequest{RequestId: "no-uuid", Session: &memoryv1.Session{}})
	reason, fields := details(err)
	check("reads the reason of an error", status.Code(err) == codes.InvalidArgument && reason == "INVALID_REQUEST", err)
	slices.Sort(fields)
	check("reads its violations", slices.Equal(fields, []string{"request_id", "session.surface_id"}), fields)

	_, err = memory.GetSession(ctx, &memoryv1.GetSessionRequest{SessionId: newUUID()})
	reason, _ = details(err)
	check("tells what is missing", status.Code(err) == codes.NotFound && reason == "NOT_FOUND", err)
}

// The reason of an error, and the fields that it finds fault with.
func details(err error) (reason string, fields []string) {
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail.Reason
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				fields = append(fields, violation.Field)
			}
		}
	}
	return reason, fields
}

func listServices(ctx context.Context, connection *grpc.ClientConn) (names []string) {
	stream, err := reflection.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	must(err)
	must(stream.Send(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_ListServices{},
	}))
	answer, err := stream.Recv()
	must(err)
	must(stream.CloseSend())
	for _, service := range answer.GetListServicesResponse().Service {
		names = append(names, service.Name)
	}
	return names
}

func newUUID() string {
	id := make([]byte, 16)
	rand.Read(id)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func check(what string, holds bool, found any) {
	if !holds {
		log.Fatalf("%s: %v", what, found)
	}
	fmt.Println("ok", what)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
