package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"onerec/internal/app"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// items reads and writes the catalogue on its topic.
func (c *cli) items() *cobra.Command {
	parent := &cobra.Command{Use: "items", Short: "List the catalogue, write to it, take items out of recommendations", GroupID: "tools", Args: cobra.NoArgs, RunE: help}
	parent.AddCommand(c.itemsList(), c.itemsPut(), c.itemsWithdraw(), c.itemsRestore())
	return parent
}

// listedItem is a line of a listing.
type listedItem struct {
	ItemID     string   `json:"item_id"`
	Title      string   `json:"title,omitempty"`
	Withdrawn  bool     `json:"withdrawn"`
	Attributes []string `json:"attributes,omitempty"`
	Embedding  int      `json:"embedding"` // its width
}

func (c *cli) itemsList() *cobra.Command {
	var withdrawn bool
	list := c.tool(&cobra.Command{
		Use: "list", Short: "List what the catalogue has",
		Long:    "Lists the items that have a record on the topic " + schemas.TopicItems + ", as the newest has them, in the order in which they first came.",
		Example: "  onerec items list --withdrawn",
	}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		if err := a.Open(cmd.Context()); err != nil {
			return err
		}
		catalogue, err := a.Catalogue(cmd.Context())
		if err != nil {
			return err
		}
		items := []listedItem{}
		catalogue.All(func(item *onerecv1.Item) bool {
			if item.Withdrawn || !withdrawn {
				items = append(items, listedItem{item.ItemId, item.Title, item.Withdrawn, item.Attributes, len(item.Embedding)})
			}
			return true
		})
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]any{"items": items, "refused": catalogue.Refused, "why": catalogue.Why})
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "ITEM\tRECOMMENDED\tATTRIBUTES\tEMBEDDING\tTITLE")
		for _, item := range items {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\n", item.ItemID, map[bool]string{false: "yes", true: "withdrawn"}[item.Withdrawn], len(item.Attributes), item.Embedding, item.Title)
		}
		if catalogue.Refused > 0 {
			fmt.Fprintf(t, "\n%d records or embeddings were not taken, the last since %s\n", catalogue.Refused, catalogue.Why)
		}
		return t.Flush()
	})
	list.Flags().BoolVar(&withdrawn, "withdrawn", false, "only those that must not be recommended")
	return list
}

func (c *cli) itemsPut() *cobra.Command {
	var embeddings, attributes string
	put := c.tool(&cobra.Command{
		Use: "put", Short: "Write items with embeddings and attributes from files",
		Long: `Writes a record for each item in --embeddings or --attributes onto the topic ` + schemas.TopicItems + `.
The newest record of an item counts; what was withdrawn stays so. A catalogue
service would write there itself.`,
		Example: "  onerec items put --embeddings items.parquet --attributes attributes.json",
	}, func(cmd *cobra.Command, a *app.App, _ []string) error {
		ctx := cmd.Context()
		by := make(map[string]*onerecv1.Item)
		var items []*onerecv1.Item
		item := func(id string) *onerecv1.Item {
			if by[id] == nil {
				by[id] = &onerecv1.Item{ItemId: id}
				items = append(items, by[id])
			}
			return by[id]
		}
		if embeddings != "" {
			e, err := semanticid.ReadEmbeddings(ctx, embeddings)
			if err != nil {
				return err
			}
			for i, id := range e.Items {
				item(id).Embedding = e.X[i*e.Dim : (i+1)*e.Dim]
			}
		}
		if attributes != "" {
			of, err := readAttributes(attributes)
			if err != nil {
				return err
			}
			for _, id := range of.items {
				item(id).Attributes = of.of(id)
			}
		}
		if err := a.Open(ctx); err != nil {
			return err
		}
		if err := a.KeepWithdrawn(ctx, by); err != nil {
			return err
		}
		if err := a.PutItems(ctx, items); err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]int{"items": len(items)})
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d items are on topic %s\n", len(items), schemas.TopicItems)
		return err
	})
	put.Flags().StringVar(&embeddings, "embeddings", "", "file of item embeddings: Parquet or Arrow IPC")
	put.Flags().StringVar(&attributes, "attributes", "", "JSON file of attributes, {\"item\": [1, \"tag\"]}, gzipped or not")
	put.MarkFlagsOneRequired("embeddings", "attributes")
	return put
}

func (c *cli) itemsWithdraw() *cobra.Command {
	return c.withdrawal(&cobra.Command{
		Use: "withdraw ITEM...", Short: "Take items out of recommendations",
		Long: `Writes that the items must not be recommended, and keeps what else their records
say. Recommenders heed it as soon as they have read that, mostly within a second,
whatever model they serve; they need no new checkpoint. The items stay in users'
histories and keep their semantic IDs.`,
		Example: "  onerec items withdraw i00042",
	}, true, "withdrawn")
}

func (c *cli) itemsRestore() *cobra.Command {
	return c.withdrawal(&cobra.Command{
		Use: "restore ITEM...", Short: "Let withdrawn items be recommended again",
		Example: "  onerec items restore i00042",
	}, false, "recommended again")
}

func (c *cli) withdrawal(cmd *cobra.Command, gone bool, what string) *cobra.Command {
	cmd.Args = cobra.MinimumNArgs(1)
	return c.tool(cmd, func(cmd *cobra.Command, a *app.App, ids []string) error {
		if err := a.Open(cmd.Context()); err != nil {
			return err
		}
		changed, err := a.WithdrawItems(cmd.Context(), ids, gone)
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(cmd.OutOrStdout(), map[string]any{"changed": append([]string{}, changed...)})
		}
		already := ""
		if len(changed) < len(ids) {
			already = "; the others were so before"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "of %d items %d are now %s%s\n", len(ids), len(changed), what, already)
		return err
	})
}
